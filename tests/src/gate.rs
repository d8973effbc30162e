//! Holding a recovery at a step: recovery-svc reaches the agent through the program `gate`, which keeps back one request, or its
//! answer, until the test lets it go. So a fault comes while the step is under way, and not before or after it by chance.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::messages::Step;

use crate::programs::program;
use crate::wait;

/// The file that says what is to be held.
pub const WANTED: &str = "wanted";
/// The file that is there while something is held: the process ids of the gate and of its agent.
pub const HELD: &str = "held";

const LIMIT: Duration = Duration::from_secs(90);

/// When a request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The agent has not seen it.
    Before,
    /// The agent has carried it out, and the service has not heard of it.
    After,
}

/// What is to be held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// When.
    pub moment: Moment,
    /// The request's name in the protocol.
    pub request: String,
}

impl Wanted {
    /// As it stands in the file.
    pub fn read(text: &str) -> Option<Self> {
        let (moment, request) = text.trim().split_once(' ')?;
        let moment = match moment {
            "before" => Moment::Before,
            "after" => Moment::After,
            _ => return None,
        };
        Some(Self {
            moment,
            request: request.to_owned(),
        })
    }

    fn text(&self) -> String {
        let moment = match self.moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        format!("{moment} {}", self.request)
    }

    /// How the request is to be known in its line.
    pub fn word(&self) -> String {
        format!("\"{}\"", self.request)
    }
}

/// Who is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// The gate.
    pub gate: u32,
    /// The agent's hand behind it.
    pub agent: u32,
}

/// The gate of a system.
#[derive(Debug, Clone)]
pub struct Gate {
    directory: PathBuf,
}

impl Gate {
    /// Makes it in a system's directory; gives the program that recovery-svc is to start instead of the agent.
    pub fn make(directory: &Path) -> Result<(Self, PathBuf)> {
        let directory = directory.join("gate");
        std::fs::create_dir(&directory)?;
        let script = directory.join("agent");
        let text = format!(
            "#!/bin/sh\nexec '{}' '{}' '{}' \"$@\"\n",
            program("gate")?.display(),
            directory.display(),
            program("pginstant-agent")?.display(),
        );
        std::fs::write(&script, text)?;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
        Ok((Self { directory }, script))
    }

    /// Has the next request of this kind held.
    pub fn want(&self, moment: Moment, request: &str) -> Result<()> {
        let request = request.to_owned();
        let wanted = Wanted { moment, request };
        let making = self.directory.join("making");
        std::fs::write(&making, wanted.text())?;
        Ok(std::fs::rename(making, self.directory.join(WANTED))?)
    }

    /// Waits until something is held.
    pub async fn holds(&self) -> Result<Held> {
        let path = self.directory.join(HELD);
        let wanted = std::fs::read_to_string(self.directory.join(WANTED)).unwrap_or_default();
        let what = format!("a request is held: {wanted}");
        wait::until(&what, LIMIT, async || path.exists()).await?;
        let text = std::fs::read_to_string(&path)?;
        let (gate, agent) = text.split_once(' ').context("two process ids")?;
        Ok(Held {
            gate: gate.parse()?,
            agent: agent.parse()?,
        })
    }

    /// Lets it go.
    pub fn release(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.directory.join(HELD))?)
    }

    /// Fails if something is still to be held: then a step was not hit.
    pub fn is_open(&self) -> Result<()> {
        let wanted = std::fs::read_to_string(self.directory.join(WANTED));
        ensure!(wanted.is_err(), "never held: {wanted:?}");
        Ok(())
    }
}

/// The request by which a step of a switchover is carried out.
pub fn request_of(step: Step) -> Result<&'static str> {
    Ok(match step {
        Step::Checkpoint => "Checkpoint",
        Step::Freeze => "Freeze",
        Step::StopPublished => "StopInstance",
        Step::StopStandby => "StopStandby",
        Step::Compare => "Positions",
        Step::Settle => "Settle",
        Step::StartFinal => "StartFinal",
        other => anyhow::bail!("{other} is no step of a switchover that can be held"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_held_reads_back_as_it_was_written() {
        for moment in [Moment::Before, Moment::After] {
            let wanted = Wanted {
                moment,
                request: "Freeze".to_owned(),
            };
            assert_eq!(Wanted::read(&wanted.text()), Some(wanted));
        }
        assert_eq!(Wanted::read("sometime Freeze"), None);
    }
}
