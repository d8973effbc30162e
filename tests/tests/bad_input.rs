//! Everything that can be wrong with what is asked for, with what is in a repository, with the target and with messages: each is
//! refused in one sentence that names the thing and the remedy, and the next good command is carried out.

use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use common::messages::SessionStatus;
use tests::postgres::{BackupOptions, free_port, run};
use tests::programs::program;
use tests::small_repository::SmallRepository;
use tests::system::{SystemOptions, TestSystem};

/// A small volume of a test's own, unmounted with its owner.
struct SmallVolume {
    directory: tempfile::TempDir,
}

impl SmallVolume {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("pginstant-small-")
            .tempdir_in("/var/tmp")?;
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"])
            .arg(directory.path()))?;
        let volume = Self { directory };
        std::fs::set_permissions(volume.directory.path(), PermissionsExt::from_mode(0o755))?;
        Ok(volume)
    }
}

impl Drop for SmallVolume {
    fn drop(&mut self) {
        Command::new("umount")
            .arg("-l")
            .arg(self.directory.path())
            .status()
            .ok();
    }
}

/// Runs explorer, which must end with this code and say these words in one sentence.
async fn refused(system: &TestSystem, arguments: &[&str], exit: i32, words: &[&str]) -> Result<()> {
    let output = system.explorer(arguments).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(exit),
        "{arguments:?} ended with {}, not {exit}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    let sentence = said.lines().last().unwrap_or_default();
    for word in words {
        ensure!(
            sentence.contains(word),
            "{arguments:?}: {word:?} is missing in: {sentence}"
        );
    }
    ensure!(
        sentence.contains("; "),
        "{arguments:?}: no remedy in: {sentence}"
    );
    Ok(())
}

fn publish<'a>(target: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["publish", "--repository", "main", "--target", target];
    all.extend_from_slice(more);
    all
}

async fn a_good_publish_works(system: &TestSystem) -> Result<()> {
    let (id, detail) = system.publish(&["--backup", "monday"]).await?;
    ensure!(
        system
            .sql(&detail, "postgres", "SELECT count(*) FROM goods")
            .await?
            == "3"
    );
    let output = system.explorer(&["unpublish", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    system.reaches(&id, SessionStatus::Completed).await?;
    system.nothing_is_left_of(&id)
}

/// More targets, each with one thing wrong.
fn targets(directory: &Path, small: &Path) -> Result<String> {
    let agent = program("pginstant-agent")?;
    let wrapper = directory.join("agent-without-fuse");
    let script = format!(
        "#!/bin/sh\nexec unshare -m sh -c 'mount --bind /dev/null /dev/fuse && exec \"$0\" \"$@\"' {} \"$@\"\n",
        agent.display()
    );
    std::fs::write(&wrapper, script)?;
    std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755))?;
    let target = |name: &str, agent: &Path, cache_root: &Path, more: &str| {
        format!(
            "[targets.{name}]\nagent_program = \"{}\"\nmount_root = \"{}\"\ncache_root = \"{}\"\n{more}\n",
            agent.display(),
            directory.join("mounts").display(),
            cache_root.display(),
        )
    };
    let caches = directory.join("caches");
    Ok(format!(
        "\n{}{}{}{}",
        target("no-fuse", &wrapper, &caches, ""),
        target(
            "no-space",
            &agent,
            &small.join("caches"),
            "cache_free_bytes_min = 1073741824"
        ),
        target("no-user", &agent, &caches, "os_user = \"nosuchuser\""),
        target(
            "no-agent",
            Path::new("/nonexistent/pginstant-agent"),
            &caches,
            ""
        ),
    ))
}

#[tokio::test]
async fn what_a_target_cannot_do_is_refused_before_anything_is_made() -> Result<()> {
    let repository = SmallRepository::new()?;
    let directory = tempfile::Builder::new()
        .prefix("pginstant-targets-")
        .tempdir_in("/var/tmp")?;
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755))?;
    let small = SmallVolume::new()?;
    let options = SystemOptions {
        target_lines: targets(directory.path(), small.directory.path())?,
        ..SystemOptions::default()
    };
    let system = TestSystem::start_with(repository.path(), options).await?;

    let nowhere = ["publish", "--repository", "nowhere", "--target", "here"];
    refused(
        &system,
        &nowhere,
        65,
        &["nowhere", "main", "[unknown_repository]"],
    )
    .await?;
    refused(
        &system,
        &publish("there", &[]),
        65,
        &["there", "here", "[unknown_target]"],
    )
    .await?;
    let tuesday = publish("here", &["--backup", "tuesday"]);
    refused(&system, &tuesday, 65, &["tuesday", "[unknown_backup]"]).await?;

    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let own = format!("(pid {})", std::process::id());
    refused(
        &system,
        &publish("here", &["--port", &port]),
        73,
        &[&port, &own, "[port_in_use]"],
    )
    .await?;
    drop(taken);

    // The default port may be another instance's.
    let free = free_port()?.to_string();
    let with_port = ["--port", free.as_str()];
    refused(
        &system,
        &publish("no-fuse", &with_port),
        69,
        &["/dev/fuse", "[fuse_unavailable]"],
    )
    .await?;
    refused(
        &system,
        &publish("no-space", &with_port),
        73,
        &["MiB free", "1024 MiB", "cache_root", "[not_enough_space]"],
    )
    .await?;
    refused(
        &system,
        &publish("no-user", &with_port),
        77,
        &["nosuchuser", "[unknown_os_user]"],
    )
    .await?;

    // An agent that cannot be started may be there later: the session waits, and says why.
    let output = system.explorer(&publish("no-agent", &with_port)).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(2), "{}: {said}", output.status);
    ensure!(said.contains("/nonexistent/pginstant-agent"), "{said}");

    a_good_publish_works(&system).await
}

/// The file of table `goods` below the data directory.
fn goods(repository: &SmallRepository) -> Result<PathBuf> {
    Ok(repository
        .original()
        .psql("postgres", "SELECT pg_relation_filepath('goods')")?
        .into())
}

#[tokio::test]
async fn a_backup_that_is_damaged_or_hostile_is_never_silent_data() -> Result<()> {
    let repository = SmallRepository::new()?;
    let goods = goods(&repository)?;

    let old = repository.copy("version11")?;
    std::fs::write(old.join("PG_VERSION"), "11\n")?;
    std::fs::remove_file(old.join("backup_manifest"))?;
    std::fs::remove_file(repository.copy("lacks")?.join(&goods))?;
    let shorter = repository.copy("shorter")?.join(&goods);
    std::fs::File::options()
        .write(true)
        .open(&shorter)?
        .set_len(4096)?;
    let flipped = std::fs::File::options()
        .write(true)
        .open(repository.copy("flipped")?.join(&goods))?;
    flipped.write_all_at(&[0xff; 8], 8_100)?;
    let linked = repository.copy("linked")?.join("postgresql.auto.conf");
    std::fs::remove_file(&linked)?;
    symlink("/etc/passwd", &linked)?;
    let tar = BackupOptions {
        tar: true,
        ..BackupOptions::default()
    };
    let tar = repository.add("climbing", &tar)?.join("base.tar");
    run(Command::new("tar").args(["-rPf"]).arg(&tar).args([
        "--transform",
        "s|.*|../../evil|",
        "/etc/hostname",
    ]))?;

    let system = TestSystem::start(repository.path()).await?;
    let mut wrong = Vec::new();
    for (label, exit, words) in [
        ("version11", 69, vec!["11", "[postgresql_not_found]"]),
        ("shorter", 65, vec!["[corrupt_backup]"]),
        (
            "linked",
            65,
            vec!["postgresql.auto.conf", "[corrupt_backup]"],
        ),
        ("climbing", 65, vec!["evil", "[corrupt_backup]"]),
    ] {
        if let Err(error) = refused(
            &system,
            &publish("here", &["--backup", label]),
            exit,
            &words,
        )
        .await
        {
            wrong.push(error.to_string());
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    // What is not there may be on a volume that is not mounted now: the session fails or waits, and names the file.
    let output = system
        .explorer(&publish("here", &["--backup", "lacks"]))
        .await?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        matches!(output.status.code(), Some(2 | 65)),
        "{}: {said}",
        output.status
    );
    ensure!(said.contains(&*goods.to_string_lossy()), "{said}");

    let (id, detail) = system.publish(&["--backup", "flipped"]).await?;
    let read = system
        .sql(&detail, "postgres", "SELECT count(*), sum(g) FROM goods")
        .await;
    ensure!(
        read.is_err(),
        "a file that does not fit its checksum was read: {read:?}"
    );
    let warned = tests::wait::find(
        "a warning that names the file",
        std::time::Duration::from_secs(30),
        async || {
            let events = system
                .explorer_json(&["events", "--since", "first", "--session", &id])
                .await?;
            Ok(events.into_iter().find(|event| {
                event.to_string().contains("backup_file_corrupt")
                    && event.to_string().contains(&*goods.to_string_lossy())
            }))
        },
    );
    warned.await?;
    let output = system.explorer(&["unpublish", &id]).await?;
    ensure!(output.status.success(), "{output:?}");
    a_good_publish_works(&system).await
}
