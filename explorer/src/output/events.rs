//! One event as one line.

use common::messages::{CacheStatistics, Event, EventBody, RawEnvelope, Severity, SwitchoverMode};
use jiff::tz::TimeZone;

use super::human::{self, NOTHING};

/// Time, severity, what it is about, what happened.
pub(crate) fn line(raw: &RawEnvelope, zone: &TimeZone) -> String {
    let at = raw
        .time
        .map_or_else(|| NOTHING.to_owned(), |at| human::time(at, zone));
    let about = raw.subject.as_deref().unwrap_or(NOTHING);
    // An event of a later version is shown by its type: better than not at all.
    let (severity, text) = match raw.clone().open::<Event>() {
        Ok(envelope) => {
            let severity = match envelope.payload.head.severity {
                Severity::Info => "info",
                Severity::Warning => "warning",
                Severity::Critical => "critical",
            };
            (severity, describe(&envelope.payload.body))
        }
        Err(_) => (NOTHING, raw.type_name.clone()),
    };
    format!("{at:<19}  {severity:<8}  {about:<36}  {text}\n")
}

fn describe(body: &EventBody) -> String {
    match body {
        EventBody::Accepted(accepted) => {
            let backup = accepted
                .backup
                .as_ref()
                .map_or("newest backup", |label| label.as_str());
            let reason = accepted
                .reason
                .as_ref()
                .map(|reason| format!(" ({reason})"));
            format!(
                "accepted: {backup} of {} on {}{}",
                accepted.repository,
                accepted.target,
                reason.unwrap_or_default()
            )
        }
        EventBody::StepStarted(started) => match started.attempt {
            1 => format!("{} begins", started.step),
            attempt => format!("{} begins, attempt {attempt}", started.step),
        },
        EventBody::StepProgress(progress) => format!("{}: {}", progress.step, progress.text),
        EventBody::StepFinished(finished) => {
            let took = human::duration_ms(finished.duration_ms);
            format!("{} done in {took}", finished.step)
        }
        EventBody::Published(published) => format!(
            "published: {}:{}, timeline {}, reached {}",
            published.host, published.port, published.timeline, published.reached_lsn
        ),
        EventBody::Mounted(mounted) => format!("mounted: {}", mounted.mount_point.display()),
        EventBody::ReadyForSwitchover(ready) => {
            format!("ready for switchover, {} KiB behind", ready.lag.bytes >> 10)
        }
        EventBody::ReplicationLag(seen) => {
            format!("{} KiB, {} ms behind", seen.lag.bytes >> 10, seen.lag.ms)
        }
        EventBody::SwitchoverChanged(changed) => match changed.switchover {
            SwitchoverMode::Auto => "switches over as soon as it is ready".to_owned(),
            SwitchoverMode::Manual => "switches over when someone asks for it".to_owned(),
            SwitchoverMode::At { at } => format!("switches over at {at}"),
        },
        EventBody::SwitchingOver(_) => "switches over".to_owned(),
        EventBody::SwitchoverFailed(failed) => {
            format!(
                "the switchover went back at {}: {}",
                failed.step, failed.problem
            )
        }
        EventBody::SwitchedOver(done) => format!(
            "switched over: {}:{}, {} without writes, {} without service",
            done.host,
            done.port,
            human::duration_ms(done.without_writes_ms),
            human::duration_ms(done.without_service_ms)
        ),
        EventBody::Waiting(waiting) => {
            let until = match waiting.next_attempt_at {
                Some(at) => format!("for the next attempt at {at}"),
                None => "for a manual retry".to_owned(),
            };
            format!("waits {until}: {}", waiting.problem)
        }
        EventBody::RetriesExhausted(exhausted) => format!(
            "all {} automatic retries have failed: {}",
            exhausted.automatic_retries, exhausted.problem
        ),
        EventBody::Retrying(retrying) => match retrying.manual {
            true => format!("attempt {} begins, asked for", retrying.attempt),
            false => format!("attempt {} begins by itself", retrying.attempt),
        },
        EventBody::Cancelling(_) => "is being cancelled".to_owned(),
        EventBody::Unpublishing(_) => "is being unpublished".to_owned(),
        EventBody::Cancelled(_) => "cancelled".to_owned(),
        EventBody::Completed(_) => "completed".to_owned(),
        EventBody::Failed(failed) => match failed.step {
            Some(step) => format!("failed at {step}: {}", failed.problem),
            None => format!("failed: {}", failed.problem),
        },
        EventBody::Warning(warning) => format!("warning: {}", warning.text),
        EventBody::WarningCleared(cleared) => {
            let code = serde_json::to_value(cleared.code).unwrap_or_default();
            format!("no longer: {}", code.as_str().unwrap_or_default())
        }
        EventBody::CacheStatistics(figures) => cache_line(figures),
        EventBody::CommandRejected(rejected) => format!(
            "rejected {}: {}",
            rejected.command_type.as_deref().unwrap_or("a command"),
            rejected.problem
        ),
    }
}

/// A write cache's figures in one line.
pub(crate) fn cache_line(figures: &CacheStatistics) -> String {
    let mut line = format!(
        "{} in the write cache; files: {} complete, {} partly here, {} local",
        human::size(figures.cache_bytes),
        figures.files_complete,
        figures.files_partial,
        figures.files_local
    );
    if figures.hydration_total_bytes > 0 {
        line += &format!(
            "; {} of {} copied of those in use",
            human::size(figures.hydration_done_bytes),
            human::size(figures.hydration_total_bytes)
        );
    }
    let reads = figures.read_hits + figures.read_misses;
    if reads > 0 {
        line += &format!("; {} of {reads} reads waited", figures.read_misses);
    }
    if figures.read_errors > 0 {
        line += &format!("; {} reads failed", figures.read_errors);
    }
    line
}

#[cfg(test)]
mod tests {
    use common::messages::{
        Completed, EventHead, Payload, SessionKind, SessionStatus, Step, StepFinished,
    };

    use super::*;
    use crate::output::samples;

    fn rendered(body: EventBody) -> String {
        let head = EventHead {
            server: "backup1".parse().unwrap(),
            kind: Some(SessionKind::Publish),
            status: Some(SessionStatus::Publishing),
            severity: Severity::Info,
        };
        let event = Event { head, body };
        let raw = serde_json::json!({
            "specversion": "1.0", "id": samples::OTHER_ID, "source": "/test",
            "type": event.type_name(), "subject": samples::ID,
            "time": "2026-11-21T04:00:00Z", "data": event.to_data(),
        });
        line(&serde_json::from_value(raw).unwrap(), &TimeZone::UTC)
    }

    #[test]
    fn an_event_is_one_line() {
        let table = [
            (
                EventBody::from(StepFinished {
                    step: Step::Mount,
                    duration_ms: 480,
                }),
                "mount done in 0.4 s",
            ),
            (
                samples::published().into(),
                "published: db1.example.com:5433, timeline 2, reached 0/2000100",
            ),
            (
                samples::waiting().into(),
                "waits for a manual retry: PostgreSQL on db1 ended with status 1; look at its log, then retry [instance_failed]",
            ),
            (Completed {}.into(), "completed"),
        ];
        for (body, expected) in table {
            assert_eq!(
                rendered(body),
                format!(
                    "2026-11-21 04:00:00  info      {}  {expected}\n",
                    samples::ID
                )
            );
        }
    }

    #[test]
    fn an_event_of_a_later_version_is_shown_by_its_type() {
        let raw = serde_json::json!({
            "specversion": "1.0", "id": samples::OTHER_ID, "source": "/test",
            "type": "io.pginstant.session.verified.v1", "data": {},
        });
        assert_eq!(
            line(&serde_json::from_value(raw).unwrap(), &TimeZone::UTC),
            format!(
                "{:<19}  {:<8}  {:<36}  io.pginstant.session.verified.v1\n",
                "-", "-", "-"
            )
        );
    }
}
