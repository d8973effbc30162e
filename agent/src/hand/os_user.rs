//! The OS user that owns a session's files and runs PostgreSQL, and how we act in its name.
//!
//! Whatever touches files that the user (or a backup) controls runs on a thread with the user's own credentials,
//! so that a symbolic link planted there can reach nothing that the user could not reach anyway.

use std::path::Path;

use common::ids::OsUser;
use common::problem::{ErrorCode, Problem};
use rustix::process::{Gid, Uid};

use super::command::{CommandLine, run};
use super::failure;

/// An OS user as the system knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: OsUser,
    /// Its number.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// All of its groups.
    pub groups: Vec<u32>,
}

/// Looks a user up through the system's name service (files, LDAP, …).
pub fn look_up(name: &OsUser) -> Result<Account, Problem> {
    let unknown = || {
        Problem::new(
            ErrorCode::UnknownOsUser,
            format!("the OS user {name} does not exist on this host"),
            "create the user (installing PostgreSQL does) or name another one for this target",
        )
    };
    let answer = run(&CommandLine::new("getent").args(["passwd", "--", name.as_str()]))?;
    if !answer.success {
        return Err(unknown());
    }
    let (uid, gid) = parse_passwd(&answer.stdout).ok_or_else(unknown)?;
    let groups = run(&CommandLine::new("id").args(["-G", "--", name.as_str()]))?;
    let mut groups: Vec<u32> = groups
        .stdout
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    if !groups.contains(&gid) {
        groups.push(gid);
    }
    Ok(Account {
        name: name.clone(),
        uid,
        gid,
        groups,
    })
}

fn parse_passwd(text: &str) -> Option<(u32, u32)> {
    let mut fields = text.lines().next()?.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Looks a group up by name or number.
pub fn group_number(name: &str) -> Result<u32, Problem> {
    let answer = run(&CommandLine::new("getent").args(["group", "--", name]))?;
    let number = answer.stdout.split(':').nth(2).and_then(|n| n.parse().ok());
    number.ok_or_else(|| {
        Problem::new(
            ErrorCode::InvalidConfiguration,
            format!("the group {name} does not exist on this host"),
            "create the group or name another one",
        )
    })
}

impl Account {
    /// Whether we may act in this user's name: as root, or being it.
    pub fn check_we_may_act(&self) -> Result<(), Problem> {
        let ours = rustix::process::geteuid();
        if ours.is_root() || ours.as_raw() == self.uid {
            return Ok(());
        }
        Err(Problem::new(
            ErrorCode::PermissionDenied,
            format!(
                "the agent runs as user {} and may not act as {}",
                ours.as_raw(),
                self.name
            ),
            format!("run the agent as root or as {}", self.name),
        ))
    }

    /// Runs work on a thread of its own that has the user's credentials; programs it starts inherit them.
    pub fn act<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Problem> {
        self.check_we_may_act()?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.become_user().map_err(|error| {
                        failure(
                            ErrorCode::PermissionDenied,
                            format!("take on the credentials of {}", self.name),
                            error.into(),
                        )
                    })?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|_| {
                    Err(Problem::new(
                        ErrorCode::Internal,
                        format!("work in the name of {} panicked", self.name),
                        "report this with the agent's log",
                    ))
                })
        })
    }

    fn become_user(&self) -> rustix::io::Result<()> {
        if rustix::process::geteuid().as_raw() == self.uid {
            return Ok(());
        }
        let groups: Vec<Gid> = self.groups.iter().map(|raw| Gid::from_raw(*raw)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::thread::set_thread_groups(&groups)?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)
    }

    /// Whether the user can enter the directory, or the nearest one above it that exists.
    pub fn check_can_enter(&self, root: &Path) -> Result<(), Problem> {
        let existing = super::host::nearest_existing(root);
        let entered = self.act(|| std::fs::metadata(existing.join(".")).map(|_| ()))?;
        entered.map_err(|error| {
            failure(
                ErrorCode::PermissionDenied,
                format!("enter {} as {}", existing.display(), self.name),
                error,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_user_is_named() {
        let problem = look_up(&OsUser::new("no-such-user-here").unwrap()).unwrap_err();
        assert_eq!(problem.code, ErrorCode::UnknownOsUser);
        assert!(problem.message.contains("no-such-user-here"));
    }

    #[test]
    fn work_runs_with_the_users_credentials_and_ours_stay() {
        let account = look_up(&OsUser::new("postgres").unwrap()).unwrap();
        let inside = account
            .act(|| {
                (
                    rustix::process::geteuid().as_raw(),
                    std::fs::read("/etc/shadow").is_err(),
                )
            })
            .unwrap();
        assert_eq!(inside, (account.uid, true));
        assert!(rustix::process::geteuid().is_root());
    }
}
