//! Directories of sessions under roots that others may write to.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use agent::hand::Hand;
use agent::hand::mounts::NoMounts;
use common::agent::hand::{Request, Response, SessionPlace};
use common::ids::OsUser;
use common::problem::{ErrorCode, Problem};

struct Host {
    directory: tempfile::TempDir,
    place: SessionPlace,
    runtime: tokio::runtime::Runtime,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("hand")
            .tempdir_in("/var/tmp")
            .unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let place = SessionPlace {
            session_id: "0190b5a8-7c3a-7def-8123-456789abcdef".parse().unwrap(),
            mount_root: directory.path().join("mounts"),
            cache_root: directory.path().join("caches"),
            os_user: OsUser::new("postgres").unwrap(),
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        Self {
            directory,
            place,
            runtime,
        }
    }

    fn answer(&self, request: Request) -> Result<Response, Problem> {
        Hand::new(NoMounts).answer(request, self.runtime.handle())
    }

    fn create(&self) -> Result<Response, Problem> {
        self.answer(Request::CreateSession {
            place: self.place.clone(),
        })
    }

    fn remove(&self) -> Result<Response, Problem> {
        self.answer(Request::RemoveSession {
            place: self.place.clone(),
        })
    }
}

#[test]
fn a_session_has_private_directories_and_making_them_again_changes_nothing() {
    let host = Host::new();
    for _ in 0..2 {
        assert_eq!(host.create().unwrap(), Response::Done);
    }
    let facts = |path: std::path::PathBuf| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.uid() == 0, found.mode() & 0o777)
    };
    assert_eq!(facts(host.place.cache_directory()), (true, 0o700));
    assert_eq!(facts(host.place.session_directory()), (true, 0o711));
    for private in [
        host.place.socket_directory(),
        host.place.configuration_directory(),
        host.place.log_directory(),
    ] {
        assert_eq!(facts(private), (false, 0o700));
    }
    let Response::Sessions(found) = host
        .answer(Request::ListSessions {
            mount_root: host.place.mount_root.clone(),
            cache_root: host.place.cache_root.clone(),
        })
        .unwrap()
    else {
        unreachable!()
    };
    assert_eq!(found.len(), 1);
    assert!(!found[0].mounted && !found[0].supervised);
    for _ in 0..2 {
        assert_eq!(host.remove().unwrap(), Response::Done);
    }
    assert!(!host.place.session_directory().exists() && !host.place.mount_point().exists());
}

#[test]
fn planted_links_and_foreign_directories_are_refused() {
    for plant in [
        "root link",
        "root foreign",
        "session link",
        "cache link",
        "socket link",
    ] {
        let host = Host::new();
        let elsewhere = host.directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let session = host.place.session_directory();
        match plant {
            "root link" => symlink(&elsewhere, &host.place.cache_root).unwrap(),
            "root foreign" => {
                fs::create_dir(&host.place.cache_root).unwrap();
                chown(&host.place.cache_root, Some(65534), None).unwrap();
            }
            "session link" => {
                fs::create_dir(&host.place.cache_root).unwrap();
                symlink(&elsewhere, &session).unwrap();
            }
            _ => {
                fs::create_dir_all(&session).unwrap();
                let name = plant.split(' ').next().unwrap();
                symlink(&elsewhere, session.join(name)).unwrap();
            }
        }
        let problem = host.create().unwrap_err();
        assert_eq!(problem.code, ErrorCode::CacheInUse, "{plant}: {problem}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "{plant}");
    }
}

#[test]
fn removal_follows_no_link_and_leaves_other_file_systems_alone() {
    let host = Host::new();
    host.create().unwrap();
    let outside = host.directory.path().join("outside");
    fs::write(&outside, "precious").unwrap();
    symlink(&outside, host.place.cache_directory().join("link")).unwrap();
    symlink(
        host.directory.path(),
        host.place.cache_directory().join("directory"),
    )
    .unwrap();
    fs::create_dir(host.place.cache_directory().join("deeper")).unwrap();
    fs::write(host.place.mount_point().join("file"), "x").unwrap();
    assert_eq!(host.remove().unwrap_err().code, ErrorCode::CacheInUse);
    fs::remove_file(host.place.mount_point().join("file")).unwrap();
    host.remove().unwrap();
    assert_eq!(fs::read_to_string(outside).unwrap(), "precious");
}

#[test]
fn the_os_user_must_exist_and_be_able_to_enter_the_roots() {
    let host = Host::new();
    let check = |user: &str, root: &std::path::Path| {
        host.answer(Request::CheckOsUser {
            user: OsUser::new(user).unwrap(),
            roots: vec![root.to_owned()],
        })
    };
    let closed = host.directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(
        check("postgres", &host.place.mount_root).unwrap(),
        Response::Done
    );
    let refused = check("postgres", &closed.join("root")).unwrap_err();
    assert_eq!(refused.code, ErrorCode::PermissionDenied);
    assert_eq!(
        check("nobody-knows-me", &closed).unwrap_err().code,
        ErrorCode::UnknownOsUser
    );
}
