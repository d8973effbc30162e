//! The table of parked messages, and one of them whole.

use super::human::or_nothing;
use super::table::{Align, Table};
use crate::parked::ParkedMessage;

/// One line a message, oldest first.
pub(crate) fn list(messages: &[ParkedMessage], truncated: bool) -> String {
    if messages.is_empty() {
        return "no parked messages\n".to_owned();
    }
    let mut table = Table::new(&[
        ("MESSAGE", Align::Left),
        ("TYPE", Align::Left),
        ("SENT TO", Align::Left),
        ("LAST FAILED", Align::Left),
        ("REASON", Align::Left),
    ]);
    for (place, message) in messages.iter().enumerate() {
        table.row([
            message.handle(place),
            or_nothing(message.type_name.as_ref()),
            or_nothing(Some(&message.routing_key).filter(|key| !key.is_empty())),
            or_nothing(message.last_failed_at.as_ref()),
            message.reason.clone(),
        ]);
    }
    let mut text = table.render();
    if truncated {
        text += &format!("only the first {} are shown\n", messages.len());
    }
    text
}

/// Everything about one message.
pub(crate) fn whole(message: &ParkedMessage) -> String {
    let line = |name: &str, value: String| format!("  {name:<12} {value}\n");
    let mut text = format!("message {}\n", or_nothing(message.id.as_ref()));
    text += &line("type", or_nothing(message.type_name.as_ref()));
    text += &line("reason", message.reason.clone());
    text += &line("first failed", or_nothing(message.first_failed_at.as_ref()));
    text += &line("last failed", or_nothing(message.last_failed_at.as_ref()));
    text += &line("exchange", format!("{:?}", message.exchange));
    text += &line("routing key", message.routing_key.clone());
    for (name, value) in &message.headers {
        text += &line("header", format!("{name}: {value}"));
    }
    text += "body\n";
    let body = match message.body.as_str() {
        Some(body) => body.to_owned(),
        None => serde_json::to_string_pretty(&message.body).unwrap_or_default(),
    };
    text += &body;
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    #[test]
    fn parked_messages_are_listed_with_reason_and_origin() {
        let message = ParkedMessage::of(&samples::parked());
        let expected = "\
MESSAGE                               TYPE                             SENT TO        LAST FAILED           REASON
0190b5a8-7c3a-7def-8123-456789abcdef  io.pginstant.command.publish.v1  mount.backup1  2026-11-21T04:00:00Z  the message is not a CloudEvent
";
        assert_eq!(list(&[message], false), expected);
        assert_eq!(list(&[], false), "no parked messages\n");
    }

    #[test]
    fn one_parked_message_is_shown_whole() {
        let mut message = ParkedMessage::of(&samples::parked());
        message.headers.clear();
        message.body = "not JSON".into();
        let expected = "\
message 0190b5a8-7c3a-7def-8123-456789abcdef
  type         io.pginstant.command.publish.v1
  reason       the message is not a CloudEvent
  first failed 2026-11-21T04:00:00Z
  last failed  2026-11-21T04:00:00Z
  exchange     \"cmd\"
  routing key  mount.backup1
body
not JSON
";
        assert_eq!(whole(&message), expected);
    }
}
