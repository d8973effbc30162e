//! The directories of a session. Their roots lie in world-writable places, so nothing that is found there is trusted:
//! directories are opened without following links and checked for their owner.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use common::agent::hand::{FoundSession, SessionPlace};
use common::ids::{OsUser, SessionId};
use common::problem::{ErrorCode, Problem};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::failure;
use super::mounts::MountKeeper;
use super::os_user::Account;

/// Deepest directory that a removal goes into.
pub(crate) const DEPTH_MAX: u32 = 64;

/// Makes the session's directories, or finds them as they should be.
pub fn create(place: &SessionPlace, account: &Account) -> Result<(), Problem> {
    account.check_we_may_act()?;
    let ours = rustix::process::geteuid().as_raw();
    let name = place.session_id.to_string();
    let mount_root = open_root(&place.mount_root, Missing::Make)?;
    if !mounted(&place.mount_point())? {
        make(&mount_root, &name, 0o755, &place.mount_point())?;
    }
    let cache_root = open_root(&place.cache_root, Missing::Make)?;
    // The directory itself is ours: the OS user could otherwise swap what we open in it by name.
    let session = make(&cache_root, &name, 0o711, &place.session_directory())?;
    check_owner(&session, ours, &place.session_directory())?;
    let cache = make(&session, "cache", 0o700, &place.cache_directory())?;
    check_owner(&cache, ours, &place.cache_directory())?;
    for directory in [
        place.configuration_directory(),
        place.socket_directory(),
        place.log_directory(),
    ] {
        let leaf = directory.file_name().unwrap_or_default().to_string_lossy();
        let made = make(&session, &leaf, 0o700, &directory)?;
        let owner = rustix::fs::fstat(&made)
            .map_err(|e| io(&directory, e))?
            .st_uid;
        if owner != ours && owner != account.uid {
            return Err(foreign(&directory, owner));
        }
        rustix::fs::fchown(
            &made,
            Some(Uid::from_raw(account.uid)),
            Some(Gid::from_raw(account.gid)),
        )
        .map_err(|e| io(&directory, e))?;
    }
    protect_from_cleaning(&[&place.mount_root, &place.cache_root])
}

/// Removes the session's directories; refused while it is mounted or PostgreSQL runs, which the caller says.
pub fn remove(
    place: &SessionPlace,
    mounts: &dyn MountKeeper,
    instance_runs: bool,
) -> Result<(), Problem> {
    let busy = |why: &str| {
        Problem::new(
            ErrorCode::CacheInUse,
            format!("session {} cannot be removed: {why}", place.session_id),
            "stop the instance and unmount first",
        )
    };
    if instance_runs {
        return Err(busy("its PostgreSQL runs"));
    }
    if mounted(&place.mount_point())? || mounts.status(place)?.is_some() {
        return Err(busy("it is mounted"));
    }
    let name = place.session_id.to_string();
    if let Some(root) = open_existing_root(&place.mount_root)? {
        match rustix::fs::unlinkat(&root, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                return Err(busy("its mount point is not empty"));
            }
            Err(error) => return Err(io(&place.mount_point(), error)),
        }
    }
    if let Some(root) = open_existing_root(&place.cache_root)? {
        let device = rustix::fs::fstat(&root)
            .map_err(|e| io(&place.cache_root, e))?
            .st_dev;
        remove_tree(root.as_fd(), &name, device, DEPTH_MAX)
            .map_err(|error| io(&place.session_directory(), error))?;
    }
    Ok(())
}

/// Sessions that have directories under the roots.
pub fn list(
    mount_root: &Path,
    cache_root: &Path,
    mounts: &dyn MountKeeper,
) -> Result<Vec<FoundSession>, Problem> {
    let mut ids = std::collections::BTreeSet::new();
    for root in [mount_root, cache_root] {
        let entries = match std::fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(failure(
                    ErrorCode::IoFailed,
                    format!("list {}", root.display()),
                    error,
                ));
            }
        };
        for entry in entries {
            let entry = entry
                .map_err(|e| failure(ErrorCode::IoFailed, format!("list {}", root.display()), e))?;
            if let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<SessionId>().ok())
            {
                ids.insert(id);
            }
        }
    }
    // The status is asked for over the session's socket, for which the OS user does not matter.
    let os_user = OsUser::new("root")
        .map_err(|e| Problem::new(ErrorCode::Internal, e.to_string(), "report this"))?;
    ids.into_iter()
        .map(|session_id| {
            let place = SessionPlace {
                session_id,
                mount_root: mount_root.to_owned(),
                cache_root: cache_root.to_owned(),
                os_user: os_user.clone(),
            };
            Ok(FoundSession {
                session_id,
                mounted: mounted(&place.mount_point())?,
                supervised: mounts.status(&place)?.is_some(),
            })
        })
        .collect()
}

/// Whether something is mounted there, as the mount table says: asking the file system itself could hang.
pub fn mounted(mount_point: &Path) -> Result<bool, Problem> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| failure(ErrorCode::IoFailed, "read /proc/self/mountinfo", e))?;
    let parent = mount_point.parent().unwrap_or(Path::new("/"));
    let real = std::fs::canonicalize(parent)
        .unwrap_or_else(|_| parent.to_owned())
        .join(mount_point.file_name().unwrap_or_default());
    let wanted = real
        .to_string_lossy()
        .replace('\\', "\\134")
        .replace(' ', "\\040");
    Ok(table
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(wanted.as_str())))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

fn open_existing_root(root: &Path) -> Result<Option<OwnedFd>, Problem> {
    if root.symlink_metadata().is_err() {
        return Ok(None);
    }
    open_root(root, Missing::Leave).map(Some)
}

fn open_root(root: &Path, missing: Missing) -> Result<OwnedFd, Problem> {
    let (Some(parent), Some(name), true) = (root.parent(), root.file_name(), root.is_absolute())
    else {
        return Err(Problem::new(
            ErrorCode::InvalidField,
            format!("{} is no directory for sessions", root.display()),
            "name an absolute path below /, such as /var/tmp/pginstant",
        ));
    };
    if missing == Missing::Make {
        std::fs::create_dir_all(parent)
            .map_err(|e| failure(ErrorCode::IoFailed, format!("make {}", parent.display()), e))?;
    }
    // The parent is the administrator's choice and may be a link; what lies in it is not trusted.
    let parent = File::open(parent)
        .map_err(|e| failure(ErrorCode::IoFailed, format!("open {}", parent.display()), e))?;
    let opened = match missing {
        Missing::Make => make(&parent, &name.to_string_lossy(), 0o755, root)?,
        Missing::Leave => open_directory(&parent, &name.to_string_lossy(), root)?,
    };
    check_owner(&opened, rustix::process::geteuid().as_raw(), root)?;
    Ok(opened)
}

fn make(parent: impl AsFd, name: &str, mode: u32, path: &Path) -> Result<OwnedFd, Problem> {
    match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(io(path, error)),
    }
    let directory = open_directory(parent, name, path)?;
    let found = rustix::fs::fstat(&directory).map_err(|e| io(path, e))?;
    if found.st_mode & 0o7777 != mode && found.st_uid == rustix::process::geteuid().as_raw() {
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(|e| io(path, e))?;
    }
    Ok(directory)
}

fn open_directory(parent: impl AsFd, name: &str, path: &Path) -> Result<OwnedFd, Problem> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP | Errno::NOTDIR => Problem::new(
            ErrorCode::CacheInUse,
            format!(
                "{} is not a directory of ours but a link or file",
                path.display()
            ),
            "find out who put it there and remove it",
        ),
        error => io(path, error),
    })
}

fn check_owner(directory: impl AsFd, wanted: u32, path: &Path) -> Result<(), Problem> {
    let owner = rustix::fs::fstat(directory)
        .map_err(|e| io(path, e))?
        .st_uid;
    if owner == wanted {
        return Ok(());
    }
    Err(foreign(path, owner))
}

fn foreign(path: &Path, owner: u32) -> Problem {
    Problem::new(
        ErrorCode::CacheInUse,
        format!("{} belongs to another user (uid {owner})", path.display()),
        "find out who put it there and remove it, or choose other roots for this target",
    )
}

fn io(path: &Path, error: Errno) -> Problem {
    failure(
        ErrorCode::IoFailed,
        format!("work on {}", path.display()),
        error.into(),
    )
}

/// Removes a directory and what is in it, staying on one device and following nothing.
pub(crate) fn remove_tree(
    parent: std::os::fd::BorrowedFd<'_>,
    name: &str,
    device: u64,
    depth: u32,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    if rustix::fs::fstat(&directory)?.st_dev != device {
        return Err(Errno::XDEV);
    }
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let leaf = entry.file_name();
        if leaf.to_bytes() == b"." || leaf.to_bytes() == b".." {
            continue;
        }
        let found = rustix::fs::statat(&directory, leaf, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
            let leaf = leaf.to_str().map_err(|_| Errno::ILSEQ)?;
            remove_tree(directory.as_fd(), leaf, device, depth - 1)?;
        } else {
            rustix::fs::unlinkat(&directory, leaf, AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Exempts roots that lie directly in `/tmp` or `/var/tmp` from cleaning by age.
fn protect_from_cleaning(roots: &[&PathBuf]) -> Result<(), Problem> {
    const DIRECTORY: &str = "/etc/tmpfiles.d";
    let cleaned: Vec<String> = roots
        .iter()
        .filter(|root| {
            root.parent()
                .is_some_and(|p| p == Path::new("/tmp") || p == Path::new("/var/tmp"))
        })
        .map(|root| format!("x {}", root.display()))
        .collect();
    if cleaned.is_empty() || !rustix::process::geteuid().is_root() || !Path::new(DIRECTORY).is_dir()
    {
        return Ok(());
    }
    let path = Path::new(DIRECTORY).join("pginstant.conf");
    let mut text = std::fs::read_to_string(&path).unwrap_or_default();
    let before = text.len();
    for line in cleaned {
        if !text.lines().any(|known| known == line) {
            text.push_str(&line);
            text.push('\n');
        }
    }
    if text.len() == before {
        return Ok(());
    }
    super::write_durably(&path, &text, 0o644)
        .map_err(|e| failure(ErrorCode::IoFailed, format!("write {}", path.display()), e))
}
