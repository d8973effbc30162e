//! The table as a RabbitMQ definitions file, which a broker loads at boot (`load_definitions`).
//!
//! Passwords are not in it. Each user has a placeholder that `deploy/rabbitmq/fill-passwords.sh` replaces, when the broker's
//! container starts, by the salted hash of the secret file of that name.

use serde_json::{Value, json};

use super::{Argument, Arguments, Role, Topology, VHOST};

fn arguments_json(arguments: &Arguments) -> Value {
    arguments
        .iter()
        .map(|(name, value)| {
            let value = match value {
                Argument::Text(text) => json!(text),
                Argument::Number(number) => json!(number),
                Argument::Flag(flag) => json!(flag),
            };
            ((*name).to_owned(), value)
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// What stands in the file in place of the hash of the password of the role's user.
pub fn password_placeholder(role: Role) -> String {
    format!("@PASSWORD_HASH:{}@", role.user())
}

/// The definitions: virtual host, users with their permissions, exchanges, queues, bindings.
pub fn definitions(topology: &Topology) -> Value {
    let users: Vec<Value> = Role::ALL
        .iter()
        .map(|role| {
            json!({
                "name": role.user(),
                "password_hash": password_placeholder(*role),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": role.tags(),
                "limits": {},
            })
        })
        .collect();
    let permissions: Vec<Value> = Role::ALL
        .iter()
        .map(|role| {
            let allowed = role.permissions();
            json!({
                "user": role.user(),
                "vhost": VHOST,
                "configure": allowed.configure,
                "write": allowed.write,
                "read": allowed.read,
            })
        })
        .collect();
    let exchanges: Vec<Value> = topology
        .exchanges()
        .iter()
        .map(|exchange| {
            json!({
                "name": exchange.name,
                "vhost": VHOST,
                "type": exchange.kind.as_str(),
                "durable": true,
                "auto_delete": false,
                "internal": false,
                "arguments": arguments_json(&exchange.arguments),
            })
        })
        .collect();
    let queues: Vec<Value> = topology
        .queues()
        .iter()
        .map(|queue| {
            json!({
                "name": queue.name,
                "vhost": VHOST,
                "durable": true,
                "auto_delete": false,
                "arguments": arguments_json(&queue.arguments),
            })
        })
        .collect();
    let bindings: Vec<Value> = topology
        .bindings()
        .iter()
        .map(|binding| {
            json!({
                "source": binding.exchange,
                "vhost": VHOST,
                "destination": binding.queue,
                "destination_type": "queue",
                "routing_key": binding.routing_key,
                "arguments": {},
            })
        })
        .collect();
    json!({
        "vhosts": [{"name": VHOST}],
        "users": users,
        "permissions": permissions,
        "topic_permissions": [],
        "parameters": [],
        "policies": [],
        "exchanges": exchanges,
        "queues": queues,
        "bindings": bindings,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ServerName;

    #[test]
    fn the_definitions_hold_no_password_but_a_place_for_each() {
        let text = definitions(&Topology::new([ServerName::new("db1").unwrap()])).to_string();
        for role in Role::ALL {
            assert!(text.contains(&password_placeholder(role)), "{role}");
        }
        assert_eq!(text.matches("\"password_hash\":").count(), Role::ALL.len());
    }
}
