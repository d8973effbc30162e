//! What the doctor found, line by line, each with what to do.

use common::messages::HostCheckState;
use common::problem::Problem;
use serde::Serialize;

use super::table::{Align, Table};

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What it is about: `broker`, `recovery-svc`, a target.
    pub(crate) about: String,
    /// What was checked.
    pub(crate) name: String,
    /// How it stands.
    pub(crate) state: HostCheckState,
    /// What was found.
    pub(crate) found: String,
    /// What to do.
    pub(crate) remedy: Option<String>,
}

impl Finding {
    pub(crate) fn good(about: &str, name: &str, found: impl Into<String>) -> Self {
        Self {
            about: about.to_owned(),
            name: name.to_owned(),
            state: HostCheckState::Good,
            found: found.into(),
            remedy: None,
        }
    }

    pub(crate) fn bad(about: &str, name: &str, problem: &Problem) -> Self {
        Self {
            about: about.to_owned(),
            name: name.to_owned(),
            state: HostCheckState::Bad,
            found: problem.message.clone(),
            remedy: Some(problem.remedy.clone()),
        }
    }

    pub(crate) fn limited(about: &str, name: &str, problem: &Problem) -> Self {
        Self {
            state: HostCheckState::Limited,
            ..Self::bad(about, name, problem)
        }
    }
}

/// The findings as a table.
pub(crate) fn table(findings: &[Finding]) -> String {
    let mut table = Table::new(&[
        ("STATE", Align::Left),
        ("WHERE", Align::Left),
        ("CHECK", Align::Left),
        ("FOUND", Align::Left),
    ]);
    for finding in findings {
        let state = match finding.state {
            HostCheckState::Good => "good",
            HostCheckState::Limited => "limited",
            HostCheckState::Bad => "BAD",
        };
        let found = match &finding.remedy {
            Some(remedy) => format!("{}; {remedy}", finding.found),
            None => finding.found.clone(),
        };
        table.row([
            state.to_owned(),
            finding.about.clone(),
            finding.name.clone(),
            found,
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn each_finding_is_a_line_with_what_to_do() {
        let findings = [
            Finding::good("broker", "reachable", "127.0.0.1:5672, /recovery"),
            Finding::limited(
                "mount-svc",
                "repositories",
                &samples::backup_list().problems[0],
            ),
            Finding::bad("db1", "postgresql", &samples::problem()),
        ];
        let expected = "\
STATE    WHERE      CHECK         FOUND
good     broker     reachable     127.0.0.1:5672, /recovery
limited  mount-svc  repositories  repository cold: no such directory; mount it, or correct its path in the configuration
BAD      db1        postgresql    PostgreSQL on db1 ended with status 1; look at its log, then retry
";
        assert_eq!(table(&findings), expected);
    }
}
