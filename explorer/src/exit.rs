//! How a command line ends: the answers' exit codes, and failures as one sentence.

use common::bus::{BusError, PublishError};
use common::problem::{ErrorCode, Problem};

/// Done.
pub(crate) const SUCCESS: u8 = 0;
/// A check found something bad, or a session waits instead of being done.
pub(crate) const NOT_FULFILLED: u8 = 2;
/// Stopped by Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;

/// What a command returns: its exit code, or why it could not do its work.
pub(crate) type Answer = Result<u8, Failure>;

/// Why a command could not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Something to tell in one sentence.
    Problem(Problem),
    /// Whoever reads our output has gone (`| head`): nothing to tell, nobody to tell it to.
    OutputClosed,
    /// Ctrl-C.
    Interrupted,
}

impl Failure {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Failure::Problem(problem) => problem.code.exit_code(),
            Failure::OutputClosed => SUCCESS,
            Failure::Interrupted => INTERRUPTED,
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure::Problem(problem)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::OutputClosed;
        }
        Failure::Problem(Problem::new(
            ErrorCode::IoFailed,
            format!("the output cannot be written: {error}"),
            "look at where standard output goes",
        ))
    }
}

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        Failure::Problem(bus_problem(error))
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        Failure::Problem(publish_problem(error))
    }
}

/// What a fault of the bus means to people.
pub(crate) fn bus_problem(error: BusError) -> Problem {
    match error {
        BusError::Unreachable(_) => Problem::new(
            ErrorCode::BrokerUnavailable,
            error.to_string(),
            "check [broker] host and port in the configuration, and that RabbitMQ runs there",
        ),
        BusError::Forbidden(_) => Problem::new(
            ErrorCode::PermissionDenied,
            error.to_string(),
            "check [broker] user, password_file and vhost in the configuration",
        ),
        BusError::Topology(problem) => problem,
        BusError::Closed => Problem::new(
            ErrorCode::BrokerUnavailable,
            error.to_string(),
            "run the command again",
        ),
    }
}

/// What a failed publish means to people.
pub(crate) fn publish_problem(error: PublishError) -> Problem {
    match error {
        PublishError::Returned { .. } => Problem::new(
            ErrorCode::TopologyMismatch,
            error.to_string(),
            "check --server, or make the queues with `explorer topology apply`",
        ),
        PublishError::Refused { .. } => Problem::new(
            ErrorCode::BrokerUnavailable,
            error.to_string(),
            "the queue is full: look at why its service does not take messages",
        ),
        PublishError::TimedOut { .. } | PublishError::Closed => Problem::new(
            ErrorCode::BrokerUnavailable,
            error.to_string(),
            "look at the broker (memory or disk alarm, lost node), then run the command again",
        ),
    }
}

/// Makes one sentence of clap's several lines: the mistake, then its tip or where the help is.
pub(crate) fn usage_problem(text: &str) -> Problem {
    let words = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut blocks = text.split("\n\n");
    let message = words(blocks.next().unwrap_or(text));
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let tip = blocks
        .clone()
        .map(words)
        .find_map(|block| block.strip_prefix("tip: ").map(str::to_owned));
    let command = blocks.map(words).find_map(|block| {
        let usage = block.strip_prefix("Usage: ")?.to_owned();
        let names: Vec<&str> = usage
            .split(' ')
            .take_while(|word| !word.starts_with(['-', '<', '[']))
            .collect();
        Some(names.join(" "))
    });
    let help = format!("see `{} --help`", command.as_deref().unwrap_or("explorer"));
    Problem::new(ErrorCode::InvalidField, message, tip.unwrap_or(help))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_on_the_command_line_becomes_one_sentence_with_a_remedy() {
        let table = [
            (
                "error: the following required arguments were not provided:\n  --target <T>\n\nUsage: explorer publish --target <T>\n\nFor more information, try '--help'.\n",
                "the following required arguments were not provided: --target <T>; see `explorer publish --help` [invalid_field]",
            ),
            (
                "error: unrecognized subcommand 'publsh'\n\n  tip: a similar subcommand exists: 'publish'\n\nUsage: explorer [OPTIONS] <COMMAND>\n",
                "unrecognized subcommand 'publsh'; a similar subcommand exists: 'publish' [invalid_field]",
            ),
            ("error: odd", "odd; see `explorer --help` [invalid_field]"),
        ];
        for (text, expected) in table {
            assert_eq!(usage_problem(text).to_string(), expected);
        }
    }

    #[test]
    fn every_failure_has_the_exit_code_of_the_contract() {
        let code = |failure: Failure| failure.exit_code();
        assert_eq!(code(BusError::Unreachable("x".into()).into()), 69);
        assert_eq!(code(BusError::Forbidden("x".into()).into()), 77);
        assert_eq!(
            code(
                PublishError::Returned {
                    destination: "mount.a".into()
                }
                .into()
            ),
            78
        );
        assert_eq!(code(PublishError::Closed.into()), 69);
        assert_eq!(
            code(std::io::Error::from(std::io::ErrorKind::BrokenPipe).into()),
            0
        );
        assert_eq!(code(Failure::Interrupted), 130);
    }
}
