//! The command line: what can be typed, with its help and examples.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use common::agent::hand::Hydrate;
use common::ids::{BackupLabel, RepositoryName, ServerName, TargetName};
use common::messages::{FinalLocation, Limits, RecoveryTarget, SwitchoverMode, SwitchoverOrder};
use jiff::Timestamp;

use crate::output::Format;
use crate::session_ref::SessionRef;
use crate::time_args::{HumanDuration, Since};

/// How long `--wait` waits when no time is given.
const WAIT_DEFAULT: Duration = Duration::from_secs(3_600);

const EXIT_CODES: &str = "\
Exit codes:
  0 done                        1 failed
  2 the session waits for a retry, or a check found something bad
  64 usage   65 bad input   69 broker or service unavailable   70 internal
  73 cannot create   74 IO   75 not finished in time   77 permission
  78 configuration or topology   130 stopped by Ctrl-C

Start here:
  explorer doctor                                     is everything in place?
  explorer backups                                    what can be published
  explorer publish --repository main --target db1     PostgreSQL from the newest backup";

/// PostgreSQL online from its backup in seconds: ask for it, watch it, undo it.
#[derive(Debug, Parser)]
#[command(name = "explorer", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// How results are written to standard output.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "table",
        env = "PGINSTANT_OUTPUT"
    )]
    pub(crate) output: Format,
    /// The mount server; default: `server` of the configuration.
    #[arg(long, global = true, value_name = "NAME", env = "PGINSTANT_SERVER")]
    pub(crate) server: Option<ServerName>,
    /// The configuration; default: ~/.config/pginstant/explorer.toml, then /etc/pginstant/explorer.toml.
    #[arg(long, global = true, value_name = "FILE", env = "PGINSTANT_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the backups that can be published or mounted.
    #[command(after_help = "Example:\n  explorer backups --repository main")]
    Backups {
        /// Only those of this repository.
        #[arg(long, value_name = "R")]
        repository: Option<RepositoryName>,
    },
    /// Start PostgreSQL on a target from a mounted backup.
    #[command(
        after_help = "Examples:\n  explorer publish --repository main --target db1\n  explorer publish --repository main --backup base_2026-11-20 --target db1 --port 5433 --reason 'check invoice 17'\n  explorer publish --repository main --target db1 --wait=2m --output json"
    )]
    Publish {
        #[command(flatten)]
        what: What,
        /// TCP port of the instance; default: the target's.
        #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
        port: Option<u16>,
        /// How far to recover: `latest` (all WAL that the repository has) or `immediate` (the backup's end).
        #[arg(long, value_name = "WHERE", default_value = "latest", value_parser = recovery_target)]
        to: RecoveryTarget,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Instant recovery: publish at the final port at once, replicate behind that, switch over without losing a commit.
    #[command(
        after_help = "Examples:\n  explorer recover --repository main --target db1 --data-directory /var/lib/postgresql/15/main --replace --switchover auto\n  explorer recover --from-session 0190b5a8 --data-directory /srv/pg/main\n  explorer recover --repository main --target db1 --data-directory /srv/pg/main --tablespace 16400=/fast/ts --switchover at=2026-12-01T03:00:00Z"
    )]
    Recover {
        /// The repository, as the mount server's configuration calls it.
        #[arg(long, value_name = "R", required_unless_present = "from_session")]
        repository: Option<RepositoryName>,
        /// The backup; default: the newest.
        #[arg(long, value_name = "L", conflicts_with = "from_session")]
        backup: Option<BackupLabel>,
        /// The target, as the mount server's configuration calls it.
        #[arg(long, value_name = "T", required_unless_present = "from_session")]
        target: Option<TargetName>,
        /// TCP port of the instance, from the first moment to the last; default: the target's.
        #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "from_session")]
        port: Option<u16>,
        /// How far to recover: `latest` (all WAL that the repository has; the default) or `immediate` (the backup's end).
        #[arg(long, value_name = "WHERE", value_parser = recovery_target, conflicts_with = "from_session")]
        to: Option<RecoveryTarget>,
        /// Why, for the session's history.
        #[arg(long, value_name = "TEXT", value_parser = reason, conflicts_with = "from_session")]
        reason: Option<String>,
        /// Make a published session an instant recovery; what users wrote is kept.
        #[arg(long, value_name = "S", conflicts_with_all = ["repository", "target"])]
        from_session: Option<SessionRef>,
        #[command(flatten)]
        location: Location,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Switch a recovered instance over to its final place, or change when that is to happen.
    #[command(
        after_help = "Examples:\n  explorer switchover 0190b5a8\n  explorer switchover 0190b5a8 --at 2026-12-01T03:00:00Z"
    )]
    Switchover {
        /// The session: its id or the beginning of it (4 characters or more).
        session: SessionRef,
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Mount the files of a backup on a target, without starting PostgreSQL.
    #[command(after_help = "Example:\n  explorer mount --repository main --target db1")]
    Mount {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Stop a published instance (or unmount files) and remove its write cache with every change in it.
    #[command(after_help = "Examples:\n  explorer unpublish 0190b5a8\n  explorer unpublish --all")]
    Unpublish {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Give a session up at whatever step it is, and undo what it did.
    #[command(after_help = "Example:\n  explorer cancel 0190b5a8")]
    Cancel {
        /// The session: its id or the beginning of it (4 characters or more).
        session: SessionRef,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Try a waiting session again, now. Changes that users made are kept.
    #[command(after_help = "Examples:\n  explorer retry 0190b5a8\n  explorer retry --all")]
    Retry {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// List the sessions.
    #[command(
        after_help = "Examples:\n  explorer sessions --watch\n  explorer sessions --all --output json | jq '.sessions[].status'"
    )]
    Sessions {
        /// Go on and show changes as they happen; Ctrl-C ends it.
        #[arg(long)]
        watch: bool,
        /// Ended ones too.
        #[arg(long)]
        all: bool,
    },
    /// Show one session: its steps, how to connect, and its log.
    #[command(after_help = "Example:\n  explorer session 0190b5a8")]
    Session {
        /// The session: its id or the beginning of it (4 characters or more).
        session: SessionRef,
    },
    /// Show what happened, from the log of events.
    #[command(
        after_help = "Examples:\n  explorer events --since 2h\n  explorer events --follow --session 0190b5a8\n  explorer events --since first --output json > events.jsonl"
    )]
    Events {
        /// Go on with what happens from now on; Ctrl-C ends it.
        #[arg(long)]
        follow: bool,
        /// Begin there: a time, a duration ago, or `first`. Default: 1d, with --follow: now.
        #[arg(long, value_name = "TIME|DURATION|first")]
        since: Option<Since>,
        /// Only those of this session.
        #[arg(long, value_name = "S")]
        session: Option<SessionRef>,
    },
    /// Look after messages that no service could take.
    #[command(subcommand)]
    Parked(Parked),
    /// Make or check the exchanges and queues of the broker.
    #[command(subcommand)]
    Topology(Topology),
    /// Check broker, services and targets, and say what to do.
    #[command(after_help = "Ends with exit code 2 when something is bad.")]
    Doctor {
        /// Only this target.
        #[arg(long, value_name = "T")]
        target: Option<TargetName>,
    },
    /// Print the completion script of a shell.
    #[command(
        after_help = "Example:\n  explorer completions bash > /etc/bash_completion.d/explorer"
    )]
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

/// What to publish or mount, and where.
#[derive(Debug, Clone, Args)]
pub(crate) struct What {
    /// The repository, as the mount server's configuration calls it.
    #[arg(long, value_name = "R")]
    pub(crate) repository: RepositoryName,
    /// The backup; default: the newest.
    #[arg(long, value_name = "L")]
    pub(crate) backup: Option<BackupLabel>,
    /// The target, as the mount server's configuration calls it.
    #[arg(long, value_name = "T")]
    pub(crate) target: TargetName,
    /// What is copied from the backup beside what is read: none, touched (the rest of files in use) or all; default: the
    /// target's.
    #[arg(long, value_name = "WHAT", value_parser = hydrate)]
    pub(crate) hydrate: Option<Hydrate>,
    /// Why, for the session's history.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: Option<String>,
}

/// Where a recovered instance is to stay, and when it goes there.
#[derive(Debug, Clone, Args)]
pub(crate) struct Location {
    /// Where the instance is to stay: its data directory on the target.
    #[arg(long, value_name = "D")]
    data_directory: PathBuf,
    /// Directory of a tablespace by its oid; default: where it was on the original.
    #[arg(long = "tablespace", value_name = "OID=DIR", value_parser = tablespace)]
    tablespaces: Vec<(u32, PathBuf)>,
    /// Stop a PostgreSQL that runs there and move aside what is in the directories; nothing is deleted.
    #[arg(long)]
    replace: bool,
    /// When to switch over: `auto` (as soon as it is ready), `manual`, or `at=TIME`.
    #[arg(long, value_name = "WHEN", default_value = "manual", value_parser = switchover)]
    switchover: SwitchoverMode,
}

impl From<Location> for FinalLocation {
    fn from(location: Location) -> Self {
        Self {
            data_directory: location.data_directory,
            tablespaces: location.tablespaces.into_iter().collect(),
            replace: location.replace,
            switchover: location.switchover,
        }
    }
}

/// What is wanted of a switchover; now, when nothing is said.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub(crate) struct Order {
    /// Begin now (the default).
    #[arg(long)]
    now: bool,
    /// Begin as soon as it is ready.
    #[arg(long)]
    auto: bool,
    /// Begin when someone asks for it.
    #[arg(long)]
    manual: bool,
    /// Begin at a time, or as soon as it is ready after it.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
}

impl From<Order> for SwitchoverOrder {
    fn from(order: Order) -> Self {
        match order.at {
            Some(at) => SwitchoverOrder::At { at },
            None if order.auto => SwitchoverOrder::Auto,
            None if order.manual => SwitchoverOrder::Manual,
            None => SwitchoverOrder::Now,
        }
    }
}

fn recovery_target(text: &str) -> Result<RecoveryTarget, String> {
    match text {
        "latest" => Ok(RecoveryTarget::Latest),
        "immediate" => Ok(RecoveryTarget::Immediate),
        _ => Err("choose latest or immediate".to_owned()),
    }
}

fn hydrate(text: &str) -> Result<Hydrate, String> {
    match text {
        "none" => Ok(Hydrate::None),
        "touched" => Ok(Hydrate::Touched),
        "all" => Ok(Hydrate::All),
        _ => Err("choose none, touched or all".to_owned()),
    }
}

/// One session or all that it makes sense for.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Which {
    /// The session: its id or the beginning of it (4 characters or more).
    pub(crate) session: Option<SessionRef>,
    /// Every session that it can be done to.
    #[arg(long)]
    pub(crate) all: bool,
}

/// Whether to stay until it is done.
#[derive(Debug, Clone, Args)]
pub(crate) struct WaitArgs {
    /// Stay until it is done, at most so long (exit 75 then). This is the default, with 1h.
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, overrides_with = "no_wait")]
    wait: Option<Option<HumanDuration>>,
    /// Send the command and end; the session goes on.
    #[arg(long)]
    no_wait: bool,
}

impl WaitArgs {
    /// How long to stay; `None` when not at all.
    pub(crate) fn limit(&self) -> Option<Duration> {
        if self.no_wait {
            return None;
        }
        let given = self.wait.flatten().map(|duration| duration.0);
        Some(given.unwrap_or(WAIT_DEFAULT))
    }
}

/// `parked …`
#[derive(Debug, Subcommand)]
pub(crate) enum Parked {
    /// List the parked messages, each with the reason.
    List,
    /// Show one parked message whole.
    Show {
        /// Its id (or the beginning of it), as `parked list` shows it.
        message: String,
    },
    /// Send one back to where it was first sent to.
    Retry {
        /// Its id (or the beginning of it), as `parked list` shows it.
        message: String,
    },
    /// Throw one away, for good.
    Discard {
        /// Its id (or the beginning of it), as `parked list` shows it.
        message: String,
    },
}

/// `topology …`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(crate) enum Topology {
    /// Make what is missing; never changes or removes what is there.
    Apply,
    /// Say whether everything is as this version needs it (exit 78 when not).
    Check,
}

fn reason(text: &str) -> Result<String, String> {
    match text.chars().count() {
        1..=Limits::REASON_CHARS => Ok(text.to_owned()),
        count => Err(format!(
            "a reason has 1 to {} characters, this one has {count}",
            Limits::REASON_CHARS
        )),
    }
}

fn tablespace(text: &str) -> Result<(u32, PathBuf), String> {
    text.split_once('=')
        .and_then(|(oid, path)| Some((oid.parse().ok()?, PathBuf::from(path))))
        .ok_or_else(|| format!("{text:?} is not OID=DIR, such as 16400=/fast/ts"))
}

fn switchover(text: &str) -> Result<SwitchoverMode, String> {
    match text {
        "auto" => Ok(SwitchoverMode::Auto),
        "manual" => Ok(SwitchoverMode::Manual),
        _ => match text.strip_prefix("at=") {
            Some(at) => time(at).map(|at| SwitchoverMode::At { at }),
            None => Err(format!("{text:?} is not auto, manual or at=TIME")),
        },
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    match text.parse()? {
        Since::At(at) => Ok(at),
        Since::First | Since::Ago(_) => Err(format!(
            "{text:?} is not a time such as 2026-12-01T03:00:00Z"
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn limit(args: &[&str]) -> Option<Duration> {
        let line = ["explorer", "cancel", "0190b5a8"];
        let cli = Cli::try_parse_from(line.iter().chain(args)).unwrap();
        match cli.command {
            Command::Cancel { wait, .. } => wait.limit(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn waiting_is_the_default_and_has_a_limit() {
        assert_eq!(limit(&[]), Some(WAIT_DEFAULT));
        assert_eq!(limit(&["--wait"]), Some(WAIT_DEFAULT));
        assert_eq!(limit(&["--wait=90s"]), Some(Duration::from_secs(90)));
        assert_eq!(limit(&["--no-wait"]), None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
        let publish = ["publish", "--repository", "main", "--target", "db1"];
        let with = |more: &[&'static str]| [&publish[..], more].concat();
        let table = [
            with(&["--port", "0"]),
            with(&["--port", "65536"]),
            with(&["--reason", ""]),
            with(&["--hydrate", "some"]),
            with(&["--to", "yesterday"]),
            with(&["--backup", "../x"]),
            with(&["--wait=soon"]),
            vec!["publish", "--repository", "main"],
            vec!["cancel", "abc"],
            vec!["cancel"],
            vec!["retry"],
            vec!["retry", "0190b5a8", "--all"],
            vec!["events", "--since", "yesterday"],
            vec!["sessions", "--server", "a/b"],
            vec!["recover", "--repository", "main", "--target", "db1"],
            vec!["recover", "--data-directory", "/d"],
            vec![
                "recover",
                "--from-session",
                "0190b5a8",
                "--target",
                "t",
                "--data-directory",
                "/d",
            ],
            vec![
                "recover",
                "--from-session",
                "0190b5a8",
                "--data-directory",
                "/d",
                "--switchover",
                "at=1h",
            ],
            vec![
                "recover",
                "--from-session",
                "0190b5a8",
                "--data-directory",
                "/d",
                "--tablespace",
                "x=/ts",
            ],
            vec!["switchover", "0190b5a8", "--now", "--auto"],
        ];
        for args in table {
            let line = ["explorer"].iter().chain(&args);
            assert!(Cli::try_parse_from(line).is_err(), "{args:?}");
        }
        assert!(Cli::try_parse_from(["explorer"].iter().chain(&publish)).is_ok());
    }
}
