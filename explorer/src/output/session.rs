//! One session: the block at the end of `publish` and friends, and the whole of `explorer session`.

use common::messages::{
    Lag, Mounted, Published, ReadyForSwitchover, SessionDetail, StepTiming, SwitchedOver,
    SwitchoverMode, Waiting,
};
use common::problem::Problem;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::human::{self, or_nothing};
use crate::follow::{End, StepState};
use crate::watch::Followed;

/// How following a session came out, for programs.
#[derive(Debug, Serialize)]
pub(crate) struct OutcomeJson {
    session_id: String,
    status: Option<common::messages::SessionStatus>,
    exit_code: u8,
    attempt: u32,
    published: Option<Published>,
    mounted: Option<Mounted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_for_switchover: Option<ReadyForSwitchover>,
    #[serde(skip_serializing_if = "Option::is_none")]
    switched_over: Option<SwitchedOver>,
    waiting: Option<Waiting>,
    problem: Option<Problem>,
    steps: Vec<StepTiming>,
    total_ms: u64,
}

impl OutcomeJson {
    pub(crate) fn of(followed: &Followed) -> Self {
        let view = &followed.view;
        let done = |(step, state): &(_, StepState)| match state {
            StepState::Done { duration_ms } => Some(StepTiming {
                step: *step,
                duration_ms: *duration_ms,
            }),
            StepState::Running(_) | StepState::Failed => None,
        };
        Self {
            session_id: view.session_id.to_string(),
            status: view.status,
            exit_code: followed.end.exit_code(),
            attempt: view.attempt,
            published: view.published.clone(),
            mounted: view.mounted.clone(),
            ready_for_switchover: view.ready.clone(),
            switched_over: view.switched_over.clone(),
            waiting: view.waiting.clone(),
            problem: view.problem.clone(),
            steps: view.steps.iter().filter_map(done).collect(),
            total_ms: milliseconds(followed),
        }
    }
}

fn milliseconds(followed: &Followed) -> u64 {
    u64::try_from(followed.took.as_millis()).unwrap_or(u64::MAX)
}

/// The block at the end: what there is now and what to type next.
pub(crate) fn outcome(followed: &Followed, zone: &TimeZone) -> String {
    let view = &followed.view;
    let id = view.session_id;
    let took = human::duration_ms(milliseconds(followed));
    let head = |word: &str| format!("session {id} is {word} after {took}\n");
    match &followed.end {
        End::Reached if view.switched_over.is_some() => {
            let block = view.switched_over.as_ref().map(switched_over_block);
            head("switched over") + &block.unwrap_or_default()
        }
        End::Reached if view.ready.is_some() => {
            let published = view.published.as_ref();
            let published = published.map(|published| published_block(published, zone));
            let ready = view.ready.as_ref().map(|ready| ready_block(ready, zone));
            head("ready for switchover")
                + &published.unwrap_or_default()
                + &ready.unwrap_or_default()
                + &next("switchover", id)
        }
        End::Reached => match (&view.published, &view.mounted) {
            (Some(published), _) => {
                head("published") + &published_block(published, zone) + &next("unpublish", id)
            }
            (None, Some(mounted)) => {
                head("mounted") + &mounted_block(mounted) + &next("unpublish", id)
            }
            (None, None) => {
                let status = view.status.map_or("done", |status| status.as_str());
                head(&status.to_lowercase())
            }
        },
        End::Waits => {
            let mut text = head("waiting");
            if let Some(waiting) = &view.waiting {
                text += &waiting_block(waiting, zone);
            }
            text + &next("retry", id) + &line("or", &format!("explorer cancel {id}"))
        }
        End::Failed(_) => head("failed") + &line("log", &format!("explorer session {id}")),
        End::EndedOtherwise(status) => {
            head(&status.as_str().to_lowercase()) + &line("log", &format!("explorer session {id}"))
        }
    }
}

fn ready_block(ready: &ReadyForSwitchover, zone: &TimeZone) -> String {
    line("behind", &lag(ready.lag)) + &line("switchover", &mode(ready.switchover, zone))
}

fn lag(lag: Lag) -> String {
    format!("{} KiB, {} ms", lag.bytes >> 10, lag.ms)
}

fn mode(mode: SwitchoverMode, zone: &TimeZone) -> String {
    match mode {
        SwitchoverMode::Auto => "as soon as it is ready".to_owned(),
        SwitchoverMode::Manual => "when someone asks for it".to_owned(),
        SwitchoverMode::At { at } => format!("at {}", human::time(at, zone)),
    }
}

fn switched_over_block(switched_over: &SwitchedOver) -> String {
    let port = switched_over.port;
    [
        line(
            "connect",
            &format!("psql -h {} -p {port}", switched_over.host),
        ),
        line("version", &format!("PostgreSQL {}", switched_over.version)),
        line("data", &switched_over.data_directory.display().to_string()),
        line("timeline", &switched_over.timeline.to_string()),
        line("run by", &switched_over.manager),
        line(
            "pause",
            &format!(
                "{} without writes, {} without service",
                human::duration_ms(switched_over.without_writes_ms),
                human::duration_ms(switched_over.without_service_ms)
            ),
        ),
        line("steps", &steps(&switched_over.steps)),
    ]
    .concat()
}

fn line(name: &str, value: &str) -> String {
    format!("  {name:<10} {value}\n")
}

fn next(command: &str, id: common::ids::SessionId) -> String {
    line("next", &format!("explorer {command} {id}"))
}

fn published_block(published: &Published, zone: &TimeZone) -> String {
    let socket = published.socket_directory.display();
    let port = published.port;
    let reached_at = published
        .reached_at
        .map(|at| format!(", last transaction {}", human::time(at, zone)));
    [
        line("connect", &format!("psql -h {} -p {port}", published.host)),
        line("socket", &format!("psql -h {socket} -p {port}")),
        line("version", &format!("PostgreSQL {}", published.version)),
        line("backup", published.backup.as_str()),
        line("timeline", &published.timeline.to_string()),
        line(
            "reached",
            &format!(
                "{}{}",
                published.reached_lsn,
                reached_at.unwrap_or_default()
            ),
        ),
        line("data", &published.data_directory.display().to_string()),
        line("steps", &steps(&published.steps)),
    ]
    .concat()
}

fn mounted_block(mounted: &Mounted) -> String {
    [
        line("files", &mounted.mount_point.display().to_string()),
        line("data", &mounted.data_directory.display().to_string()),
        line("backup", mounted.backup.as_str()),
        line("steps", &steps(&mounted.steps)),
    ]
    .concat()
}

fn waiting_block(waiting: &Waiting, zone: &TimeZone) -> String {
    let step = waiting.step.map(|step| format!(" at step {step}"));
    let when = match waiting.next_attempt_at {
        Some(at) => format!("again by itself at {}", human::time(at, zone)),
        None => "until somebody asks for a retry".to_owned(),
    };
    [
        line("why", &waiting.problem.to_string()),
        line(
            "failed",
            &format!("attempt {}{}", waiting.attempt, step.unwrap_or_default()),
        ),
        line("waits", &when),
    ]
    .concat()
}

fn steps(timings: &[StepTiming]) -> String {
    let one =
        |timing: &StepTiming| format!("{} {}", timing.step, human::duration_ms(timing.duration_ms));
    timings.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Everything about one session.
pub(crate) fn detail(detail: &SessionDetail, zone: &TimeZone) -> String {
    let summary = &detail.summary;
    let ended = summary.ended_at.map(|at| human::time(at, zone));
    let mut text = format!("session {}\n", summary.session_id);
    text += &line("kind", summary.kind.as_str());
    text += &line("status", summary.status.as_str());
    text += &line("server", summary.server.as_str());
    text += &line("repository", summary.repository.as_str());
    text += &line("target", summary.target.as_str());
    text += &line("started", &human::time(summary.started_at, zone));
    text += &line("ended", &or_nothing(ended));
    text += &line("attempt", &summary.attempt.to_string());
    text += &line("reason", &or_nothing(detail.reason.as_ref()));
    match (&detail.published, &detail.mounted) {
        (Some(published), _) => text += &published_block(published, zone),
        (None, Some(mounted)) => text += &mounted_block(mounted),
        (None, None) => {
            text += &line("backup", &or_nothing(summary.backup.as_ref()));
            text += &line("step", &or_nothing(summary.step));
            if !detail.steps.is_empty() {
                text += &line("steps", &steps(&detail.steps));
            }
        }
    }
    if let Some(recovery) = &detail.recovery {
        text += &line("final", &recovery.data_directory.display().to_string());
        text += &line("switchover", &mode(recovery.switchover, zone));
        if let Some(behind) = recovery.lag {
            text += &line("behind", &lag(behind));
        }
        if let Some(switched_over) = &recovery.switched_over {
            text += &switched_over_block(switched_over);
        }
    }
    match (&detail.waiting, &summary.problem) {
        (Some(waiting), _) => text += &waiting_block(waiting, zone),
        (None, Some(problem)) => text += &line("why", &problem.to_string()),
        (None, None) => {}
    }
    if let Some(figures) = &detail.cache {
        text += &line("cache", &super::events::cache_line(figures));
    }
    for warning in &detail.warnings {
        text += &line("warning", &warning.text);
    }
    if !detail.log.is_empty() {
        text += "log\n";
    }
    for entry in &detail.log {
        text += &format!("  {}  {}\n", human::time(entry.at, zone), entry.text);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::messages::{SessionLogLine, SessionStatus};

    use super::*;
    use crate::follow::SessionView;
    use crate::output::samples;

    fn followed(end: End, change: impl FnOnce(&mut SessionView)) -> Followed {
        let mut view = SessionView::new(samples::ID.parse().unwrap());
        change(&mut view);
        Followed {
            view,
            end,
            took: Duration::from_millis(3_240),
        }
    }

    #[test]
    fn a_published_session_ends_with_how_to_connect_and_what_to_type_next() {
        let followed = followed(End::Reached, |view| {
            view.published = Some(samples::published())
        });
        let expected = "\
session 0190b5a8-7c3a-7def-8123-456789abcdef is published after 3.2 s
  connect    psql -h db1.example.com -p 5433
  socket     psql -h /var/tmp/pginstant/0190b5a8-7c3a-7def-8123-456789abcdef/socket -p 5433
  version    PostgreSQL 15.14
  backup     base_2026-11-20
  timeline   2
  reached    0/2000100, last transaction 2026-11-20 01:02:03
  data       /tmp/pginstant/0190b5a8-7c3a-7def-8123-456789abcdef/data
  steps      validate 0.2 s, mount 0.4 s, start 1.2 s
  next       explorer unpublish 0190b5a8-7c3a-7def-8123-456789abcdef
";
        assert_eq!(outcome(&followed, &TimeZone::UTC), expected);
        let json = serde_json::to_value(OutcomeJson::of(&followed)).unwrap();
        assert_eq!(json["published"]["port"], 5433);
        assert_eq!(json["exit_code"], 0);
        assert_eq!(json["total_ms"], 3_240);
    }

    #[test]
    fn a_mounted_session_ends_with_where_the_files_are() {
        let followed = followed(End::Reached, |view| view.mounted = Some(samples::mounted()));
        let expected = "\
session 0190b5a8-7c3a-7def-8123-456789abcdef is mounted after 3.2 s
  files      /tmp/pginstant/0190b5a8-7c3a-7def-8123-456789abcdef
  data       /tmp/pginstant/0190b5a8-7c3a-7def-8123-456789abcdef/data
  backup     base_2026-11-20
  steps      validate 0.2 s, mount 0.4 s
  next       explorer unpublish 0190b5a8-7c3a-7def-8123-456789abcdef
";
        assert_eq!(outcome(&followed, &TimeZone::UTC), expected);
    }

    #[test]
    fn a_waiting_session_says_why_and_both_ways_out() {
        let followed = followed(End::Waits, |view| view.waiting = Some(samples::waiting()));
        let expected = "\
session 0190b5a8-7c3a-7def-8123-456789abcdef is waiting after 3.2 s
  why        PostgreSQL on db1 ended with status 1; look at its log, then retry [instance_failed]
  failed     attempt 2 at step start
  waits      until somebody asks for a retry
  next       explorer retry 0190b5a8-7c3a-7def-8123-456789abcdef
  or         explorer cancel 0190b5a8-7c3a-7def-8123-456789abcdef
";
        assert_eq!(outcome(&followed, &TimeZone::UTC), expected);
    }

    #[test]
    fn an_unpublished_or_failed_session_is_one_or_two_lines() {
        let gone = followed(End::Reached, |view| {
            view.status = Some(SessionStatus::Completed)
        });
        assert_eq!(
            outcome(&gone, &TimeZone::UTC),
            "session 0190b5a8-7c3a-7def-8123-456789abcdef is completed after 3.2 s\n"
        );
        let failed = followed(End::Failed(Some(samples::problem())), |_| {});
        assert_eq!(
            outcome(&failed, &TimeZone::UTC),
            "session 0190b5a8-7c3a-7def-8123-456789abcdef is failed after 3.2 s\n  log        explorer session 0190b5a8-7c3a-7def-8123-456789abcdef\n"
        );
    }

    #[test]
    fn one_session_is_shown_whole() {
        let [_, summary] = <[_; 2]>::try_from(samples::sessions()).unwrap();
        let shown = SessionDetail {
            summary,
            steps: samples::timings(),
            published: None,
            mounted: None,
            recovery: None,
            waiting: Some(samples::waiting()),
            cache: Some(samples::cache()),
            warnings: Vec::new(),
            reason: Some("check invoice 17".into()),
            log: vec![SessionLogLine {
                at: "2026-11-21T04:00:01Z".parse().unwrap(),
                sequence: 1,
                event_type: "io.pginstant.session.accepted.v1".into(),
                text: "accepted".into(),
            }],
        };
        let expected = "\
session 0190b5a8-7c3a-7def-8123-556789abcdef
  kind       publish
  status     Waiting for manual retry
  server     backup1
  repository main
  target     db1
  started    2026-11-21 04:00:00
  ended      -
  attempt    2
  reason     check invoice 17
  backup     -
  step       start
  steps      validate 0.2 s, mount 0.4 s, start 1.2 s
  why        PostgreSQL on db1 ended with status 1; look at its log, then retry [instance_failed]
  failed     attempt 2 at step start
  waits      until somebody asks for a retry
  cache      1.5 GiB in the write cache; files: 3 complete, 2 partly here, 7 local; 1.0 GiB of 2.0 GiB copied of those in use; 5 of 100 reads waited
log
  2026-11-21 04:00:01  accepted
";
        assert_eq!(detail(&shown, &TimeZone::UTC), expected);
    }
}
