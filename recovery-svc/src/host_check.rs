//! Is a target fit? One line for each thing that a session will need.

use std::sync::Arc;

use common::agent::hand::{HostFacts, Request, Response};
use common::config::TargetConfig;
use common::ids::TargetName;
use common::messages::{HostCheck, HostCheckLine, HostCheckState};
use common::problem::Problem;

use crate::hand::{self, Hand, LOOK_FOR, unexpected};
use crate::service::Service;
use crate::steps::enough_space;

/// Looks at one target, or at all.
pub(crate) async fn check(
    service: &Arc<Service>,
    wanted: Option<TargetName>,
) -> Result<HostCheck, Problem> {
    let targets: Vec<(TargetName, TargetConfig)> = match wanted {
        Some(name) => {
            let target = service.config.target(&name)?.clone();
            vec![(name, target)]
        }
        None => service
            .config
            .targets
            .iter()
            .map(|(name, target)| (name.clone(), target.clone()))
            .collect(),
    };
    let mut lines = Vec::new();
    for (name, target) in targets {
        let mut report = Report {
            name,
            target,
            lines: Vec::new(),
        };
        if let Err(problem) = report.look(service).await {
            report.bad("agent", &problem);
        }
        lines.append(&mut report.lines);
    }
    Ok(HostCheck { lines })
}

struct Report {
    name: TargetName,
    target: TargetConfig,
    lines: Vec<HostCheckLine>,
}

impl Report {
    fn line(&mut self, name: &str, state: HostCheckState, found: String, remedy: Option<String>) {
        self.lines.push(HostCheckLine {
            target: self.name.clone(),
            os_user: Some(self.target.os_user.clone()),
            name: name.to_owned(),
            state,
            found,
            remedy,
        });
    }

    fn good(&mut self, name: &str, found: String) {
        self.line(name, HostCheckState::Good, found, None);
    }

    fn bad(&mut self, name: &str, problem: &Problem) {
        let remedy = Some(problem.remedy.clone());
        self.line(name, HostCheckState::Bad, problem.message.clone(), remedy);
    }

    async fn look(&mut self, service: &Service) -> Result<(), Problem> {
        let hand = service.hands.open(&self.name, &self.target).await?;
        let hand = hand.as_ref();
        let version = hand::greet(hand).await?;
        self.good("agent", format!("version {version}"));
        self.facts(hand).await?;
        self.os_user(hand).await;
        self.postgresql(hand).await?;
        Ok(())
    }

    async fn facts(&mut self, hand: &dyn Hand) -> Result<(), Problem> {
        let cache_root = self.target.cache_root.clone();
        let paths = vec![cache_root.clone()];
        let facts: HostFacts = match hand.request(Request::HostFacts { paths }, LOOK_FOR).await? {
            Response::HostFacts(facts) => facts,
            other => return Err(unexpected("host facts", &other)),
        };
        match &facts.fuse {
            Ok(()) => self.good("fuse", format!("usable, kernel {}", facts.kernel)),
            Err(problem) => self.bad("fuse", problem),
        }
        match &facts.passthrough {
            Ok(()) => self.good(
                "passthrough",
                "files of the write cache are native".to_owned(),
            ),
            Err(why) => self.line(
                "passthrough",
                HostCheckState::Limited,
                why.clone(),
                Some("a kernel of 6.9 or later with root mounts serves them faster".to_owned()),
            ),
        }
        let volume = facts.volumes.get(&cache_root);
        match enough_space(volume, self.target.cache_free_bytes_min) {
            Ok(()) => {
                let free_mib = volume.map_or(0, |volume| volume.free_bytes >> 20);
                let found = format!("{free_mib} MiB free at {}", cache_root.display());
                self.good("write cache space", found);
            }
            Err(problem) => self.bad("write cache space", &problem),
        }
        let (available, total) = (
            facts.memory_available_bytes >> 20,
            facts.memory_total_bytes >> 20,
        );
        self.good(
            "memory",
            format!("{available} MiB available of {total} MiB"),
        );
        Ok(())
    }

    async fn os_user(&mut self, hand: &dyn Hand) {
        let user = self.target.os_user.clone();
        let request = Request::CheckOsUser {
            user: user.clone(),
            roots: vec![
                self.target.mount_root.clone(),
                self.target.cache_root.clone(),
            ],
        };
        match hand::done(hand, request, LOOK_FOR).await {
            Ok(()) => self.good("os user", format!("{user} exists and we may act for it")),
            Err(problem) => self.bad("os user", &problem),
        }
    }

    async fn postgresql(&mut self, hand: &dyn Hand) -> Result<(), Problem> {
        let request = Request::ListPostgresql {
            extra_directories: self.target.program_directories.clone(),
        };
        match hand.request(request, LOOK_FOR).await? {
            Response::PostgresqlList(found) if found.is_empty() => {
                let remedy = "install PostgreSQL of the backups' major versions, or name its directory in program_directories";
                self.line(
                    "postgresql",
                    HostCheckState::Bad,
                    "none is installed".to_owned(),
                    Some(remedy.to_owned()),
                );
            }
            Response::PostgresqlList(found) => {
                for one in found {
                    let text = format!("{} at {}", one.version, one.program_directory.display());
                    self.good("postgresql", text);
                }
            }
            other => return Err(unexpected("a list of PostgreSQL", &other)),
        }
        Ok(())
    }
}
