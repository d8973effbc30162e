//! `explorer doctor`: is everything in place, and if not, what is to be done?

use common::ids::{ServerName, TargetName};
use common::messages::{BackupsQuery, HostCheckLine, HostCheckQuery, HostCheckState};
use common::problem::{ErrorCode, Problem};

use crate::cli::Topology;
use crate::client::{Client, Service};
use crate::config::ExplorerConfig;
use crate::exit::{Answer, Failure, NOT_FULFILLED, SUCCESS, bus_problem};
use crate::output::Output;
use crate::output::doctor::{Finding, table};

/// Checks from near to far; what lies behind something broken is not looked at.
pub(super) async fn run(
    target: Option<TargetName>,
    config: &ExplorerConfig,
    server: ServerName,
    output: &Output,
) -> Answer {
    let mut findings = Vec::new();
    let broker = format!(
        "{}:{}, vhost {}",
        config.broker.host, config.broker.port, config.broker.vhost
    );
    match super::open(config, server.clone()).await {
        Ok(client) => {
            findings.push(Finding::good("broker", "reachable", broker));
            let answer = look(&client, config, target, &mut findings).await;
            client.bus.close().await;
            answer?;
        }
        Err(Failure::Problem(problem)) => {
            findings.push(Finding::bad("broker", "reachable", &problem));
        }
        Err(failure) => return Err(failure),
    }
    output.result(&serde_json::json!({ "findings": findings }), |_| {
        table(&findings)
    })?;
    let bad = findings.iter().any(|f| f.state == HostCheckState::Bad);
    Ok(if bad { NOT_FULFILLED } else { SUCCESS })
}

async fn look(
    client: &Client,
    config: &ExplorerConfig,
    target: Option<TargetName>,
    findings: &mut Vec<Finding>,
) -> Result<(), Failure> {
    let server = &client.server;
    findings.push(
        match crate::connect::topology(config, server, Topology::Check).await {
            Ok(()) => Finding::good("broker", "topology", format!("as it must be for {server}")),
            Err(error) => Finding::bad("broker", "topology", &bus_problem(error)),
        },
    );
    findings.push(match client.bus.depth(crate::parked::QUEUE).await {
        Ok(0) => Finding::good("broker", "parked", "no parked messages"),
        Ok(count) => {
            let problem = Problem::new(
                ErrorCode::MalformedMessage,
                format!("{count} parked messages"),
                "look at `explorer parked list`",
            );
            Finding::limited("broker", "parked", &problem)
        }
        Err(error) => Finding::bad("broker", "parked", &bus_problem(error)),
    });
    mount_service(client, findings).await?;
    let about = Service::Recovery.name();
    match client.host_check(HostCheckQuery { target }).await {
        Ok(check) => {
            findings.push(Finding::good(about, "answers", format!("on {server}")));
            findings.extend(check.lines.into_iter().map(of_host));
        }
        Err(Failure::Problem(problem)) => findings.push(Finding::bad(about, "answers", &problem)),
        Err(failure) => return Err(failure),
    }
    Ok(())
}

async fn mount_service(client: &Client, findings: &mut Vec<Finding>) -> Result<(), Failure> {
    let about = Service::Mount.name();
    match client.backups(BackupsQuery { repository: None }).await {
        Ok(list) => {
            let found = format!("on {}, {} backups", client.server, list.backups.len());
            findings.push(Finding::good(about, "answers", found));
            let problems = list.problems.iter();
            findings.extend(problems.map(|p| Finding::limited(about, "repositories", p)));
        }
        Err(Failure::Problem(problem)) => findings.push(Finding::bad(about, "answers", &problem)),
        Err(failure) => return Err(failure),
    }
    Ok(())
}

fn of_host(line: HostCheckLine) -> Finding {
    let user = line.os_user.map(|user| format!("{user}@"));
    Finding {
        about: format!("{}{}", user.unwrap_or_default(), line.target),
        name: line.name,
        state: line.state,
        found: line.found,
        remedy: line.remedy,
    }
}
