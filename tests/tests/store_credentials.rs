//! Credentials of object stores as people have them, through the whole product.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panic")]

use std::path::Path;

use anyhow::{Result, ensure};
use tests::s3_server::{BUCKET, S3Server, SECRET};
use tests::small_repository::SmallRepository;
use tests::system::{SystemOptions, TestSystem};

#[tokio::test]
async fn a_profile_of_the_aws_command_line_says_keys_region_and_endpoint() -> Result<()> {
    let backups = SmallRepository::new()?;
    let server = S3Server::start()?;
    server.put_files(backups.path(), "backups")?;
    let home = tempfile::tempdir_in("/var/tmp")?;
    let directory = home.path().join(".aws");
    std::fs::create_dir(&directory)?;
    let [(_, key), (_, secret), _] = server.variables();
    let credentials = format!(
        "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n\
         [backups]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    );
    std::fs::write(directory.join("credentials"), credentials)?;
    let config = format!(
        "[profile backups]\nregion = us-east-1\nendpoint_url = {}\n\
         [profile other]\ncredential_process = /usr/bin/false {SECRET}\n",
        server.endpoint()
    );
    std::fs::write(directory.join("config"), config)?;
    for (profile, told) in [
        ("backups", "monday"),
        (
            "other",
            "says credential_process, and such profiles are not read",
        ),
        ("none", "there is no profile"),
    ] {
        let home = home.path().display().to_string();
        let environment = [("HOME", home.as_str()), ("AWS_PROFILE", profile)];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options = SystemOptions {
            repository_lines: "[repositories.main.object_store]\nallow_http = true\n".to_owned(),
            mount_environment: environment.to_vec(),
            ..SystemOptions::default()
        };
        let path = format!("s3://{BUCKET}/backups");
        let system = TestSystem::start_with(Path::new(&path), options).await?;
        let listed = system.explorer(&["--output", "json", "backups"]).await?;
        let listed = String::from_utf8(listed.stdout)? + &String::from_utf8(listed.stderr)?;
        ensure!(
            listed.contains(told),
            "{profile}: {told} is not in:\n{listed}"
        );
        let log = system.log("mount-svc");
        ensure!(
            !log.contains(SECRET) && !listed.contains(SECRET),
            "a secret is told"
        );
    }
    Ok(())
}
