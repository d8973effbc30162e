//! Profiles of the AWS command line: `~/.aws/credentials` and `~/.aws/config`.
//!
//! As with Amazon's own tools they come behind keys and tokens that the environment names, and before the machine's own identity. Of what a
//! profile may say the static keys, region and endpoint are taken; one whose credentials another program or service gives is refused by what it
//! says, for without them somebody else's would be used.

use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3ConfigKey;

use crate::RepositoryError;

/// Why a profile cannot be used.
#[derive(Debug)]
pub(super) enum ProfileRefusal {
    /// A file of it cannot be read.
    Unreadable(RepositoryError),
    /// It is not there, or of a kind that is not read.
    Unusable {
        reason: String,
        remedy: &'static str,
    },
}

/// A variable of the environment.
type Variable<'a> = dyn Fn(&str) -> Option<String> + 'a;
/// The content of a file.
type ReadFile<'a> = dyn Fn(&Path) -> Result<String, RepositoryError> + 'a;

/// What is taken.
const TAKEN: [(&str, AmazonS3ConfigKey); 5] = [
    ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
    ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
    ("aws_session_token", AmazonS3ConfigKey::Token),
    ("region", AmazonS3ConfigKey::Region),
    ("endpoint_url", AmazonS3ConfigKey::Endpoint),
];
/// With these, keys are of somebody who may become somebody else.
const OF_ROLES: [&str; 3] = ["role_arn", "source_profile", "credential_source"];
/// These give credentials where there are no keys.
const OF_PROGRAMS: [&str; 4] = [
    "credential_process",
    "sso_session",
    "sso_start_url",
    "login_session",
];

const REMEDY: &str = "put the keys of a user who may read the bucket into the profile or into credentials_file, or give the machine a role";

/// The settings of the profile that the environment names, else of `default`.
pub(super) fn aws_profile(
    variable: &Variable<'_>,
    read: &ReadFile<'_>,
) -> Result<Vec<(AmazonS3ConfigKey, String)>, ProfileRefusal> {
    let is_set = |name| variable(name).is_some_and(|value| !value.is_empty());
    let of_environment = is_set("AWS_ACCESS_KEY_ID") || is_set("AWS_WEB_IDENTITY_TOKEN_FILE");
    let named = variable("AWS_PROFILE").filter(|name| !name.is_empty());
    let name = named.as_deref().unwrap_or("default");
    let mut settings = Vec::new();
    let mut was_found = false;
    for (file, other, heading) in [
        ("AWS_CONFIG_FILE", ".aws/config", heading_of_config(name)),
        (
            "AWS_SHARED_CREDENTIALS_FILE",
            ".aws/credentials",
            name.to_owned(),
        ),
    ] {
        let Some(path) = path_of(variable, file, other) else {
            continue;
        };
        let text = read(&path).map_err(ProfileRefusal::Unreadable)?;
        if let Some(found) = section_of(&text, &heading) {
            was_found = true;
            settings.extend(found);
        }
    }
    if named.is_some() && !was_found {
        return Err(ProfileRefusal::Unusable {
            reason: format!("there is no profile {name:?} in ~/.aws/credentials and ~/.aws/config"),
            remedy: "see that AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE and AWS_CONFIG_FILE of mount-svc name what there is",
        });
    }
    if !of_environment {
        refuse_others(name, &settings)?;
    }
    let taken = settings.into_iter().filter_map(|(key, value)| {
        let (_, known) = TAKEN.iter().find(|(taken, _)| *taken == key)?;
        let is_credential = key.starts_with("aws_");
        (!(is_credential && of_environment)).then_some((*known, value))
    });
    Ok(taken.collect())
}

/// The file that a variable names, or the usual one if it is there.
fn path_of(variable: &Variable<'_>, named: &str, other: &str) -> Option<PathBuf> {
    if let Some(path) = variable(named).filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let home = variable("HOME").filter(|home| !home.is_empty())?;
    Some(Path::new(&home).join(other)).filter(|path| path.exists())
}

fn heading_of_config(name: &str) -> String {
    match name {
        "default" => name.to_owned(),
        name => format!("profile {name}"),
    }
}

fn refuse_others(name: &str, settings: &[(String, String)]) -> Result<(), ProfileRefusal> {
    let says = |key: &&str| settings.iter().any(|(said, _)| said == key);
    let has_keys = says(&"aws_access_key_id");
    let of_programs = OF_PROGRAMS.iter().filter(|_| !has_keys);
    match OF_ROLES.iter().chain(of_programs).find(|key| says(key)) {
        Some(key) => Err(ProfileRefusal::Unusable {
            reason: format!(
                "profile {name:?} of ~/.aws says {key}, and such profiles are not read"
            ),
            remedy: REMEDY,
        }),
        None => Ok(()),
    }
}

/// The settings below a heading; of lines that are indented, which belong to the one before, none.
fn section_of(text: &str, heading: &str) -> Option<Vec<(String, String)>> {
    let mut found: Option<Vec<(String, String)>> = None;
    let mut is_inside = false;
    for line in text.lines() {
        let is_nested = line.starts_with([' ', '\t']);
        let line = line.trim();
        if let Some(inner) = line.strip_prefix('[') {
            let name = inner.split(']').next().unwrap_or_default();
            let words: Vec<&str> = name.split_whitespace().collect();
            is_inside = words.join(" ") == heading;
            if is_inside {
                found.get_or_insert_default();
            }
            continue;
        }
        if !is_inside || is_nested || line.starts_with(['#', ';']) {
            continue;
        }
        if let (Some((key, value)), Some(found)) = (line.split_once('='), &mut found) {
            let key = key.trim().to_ascii_lowercase();
            let value = value.trim().to_owned();
            if !value.is_empty() {
                found.push((key, value));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = A\naws_secret_access_key = SECRET\n\
        [other]\naws_access_key_id=B\naws_secret_access_key=SECRET=\n# aws_session_token = C\n\
        [mfa]\naws_access_key_id=M\nrole_arn=x\n[empty]\n";
    const CONFIG: &str = "[default]\nregion = eu-central-1\ns3 =\n  endpoint_url = http://nested\n\
        [profile  other ]\nendpoint_url = https://minio:9000\n\
        [profile tool]\ncredential_process = /bin/x SECRET\n\
        [profile sso]\nsso_session = y\n[services a]\nregion = wrong\n";

    fn profile(
        variables: &[(&str, &str)],
    ) -> Result<Vec<(AmazonS3ConfigKey, String)>, ProfileRefusal> {
        let files = [("/c", CREDENTIALS), ("/f", CONFIG)];
        aws_profile(
            &|name| match name {
                "AWS_SHARED_CREDENTIALS_FILE" => Some("/c".to_owned()),
                "AWS_CONFIG_FILE" => Some("/f".to_owned()),
                name => {
                    let found = variables.iter().find(|(known, _)| *known == name);
                    found.map(|(_, value)| (*value).to_owned())
                }
            },
            &|path| {
                let found = files.iter().find(|(name, _)| Path::new(name) == path);
                Ok(found.unwrap().1.to_owned())
            },
        )
    }

    #[test]
    fn keys_region_and_endpoint_are_those_of_the_profile_that_is_named() {
        use AmazonS3ConfigKey::{AccessKeyId, Endpoint, Region, SecretAccessKey};
        for (variables, wanted) in [
            (
                &[][..],
                &[
                    (Region, "eu-central-1"),
                    (AccessKeyId, "A"),
                    (SecretAccessKey, "SECRET"),
                ][..],
            ),
            (
                &[("AWS_PROFILE", "other")],
                &[
                    (Endpoint, "https://minio:9000"),
                    (AccessKeyId, "B"),
                    (SecretAccessKey, "SECRET="),
                ],
            ),
            // Keys of the environment are not mixed with those of a profile, and what the profile says beside them stays.
            (&[("AWS_ACCESS_KEY_ID", "E")], &[(Region, "eu-central-1")]),
            (&[("AWS_ACCESS_KEY_ID", "E"), ("AWS_PROFILE", "tool")], &[]),
            (&[("AWS_PROFILE", "empty")], &[]),
        ] {
            let wanted: Vec<_> = wanted
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect();
            assert_eq!(profile(variables).unwrap(), wanted, "{variables:?}");
        }
    }

    #[test]
    fn a_profile_whose_credentials_come_from_elsewhere_is_refused_by_what_it_says() {
        for (name, told) in [
            ("tool", "credential_process"),
            ("sso", "sso_session"),
            ("mfa", "role_arn"),
            ("none", "there is no profile"),
        ] {
            let refusal = profile(&[("AWS_PROFILE", name)]).unwrap_err();
            let shown = format!("{refusal:?}");
            assert!(shown.contains(told) && !shown.contains("SECRET"), "{shown}");
        }
    }

    #[test]
    fn where_there_are_no_files_there_is_no_profile() {
        let none = aws_profile(&|_| None, &|_| panic!("nothing is read"));
        assert!(none.unwrap().is_empty());
        let home = tempfile::tempdir().unwrap();
        let home = home.path().to_str().unwrap();
        let in_home = |name: &str| (name == "HOME").then(|| home.to_owned());
        let none = aws_profile(&in_home, &|_| panic!("nothing is read"));
        assert!(none.unwrap().is_empty());
    }
}
