//! Connecting to an object store with the settings and credentials that its users have.
//!
//! Credentials come from the environment (`AWS_*`, `AZURE_*`, `GOOGLE_*`), from a profile of the AWS command line, from the machine's own identity
//! in its cloud, or from a file that the configuration names. They are in no error and no log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, Certificate, ClientConfigKey, ClientOptions, RetryConfig};

use super::Bucket;
use super::access::ObjectLimits;
use super::aws_profile::{ProfileRefusal, aws_profile};
use super::credentials::{parse_connection_string, parse_credentials};
use super::failure::cause_of;
use super::location::{ObjectLocation, ObjectStoreKind};
use crate::RepositoryError;

/// How long a connection may take to come about.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a request may take, with its answer.
const REQUEST_MAX: Duration = Duration::from_secs(30);
/// Longest wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Azure's settings in one, by the name that it has in a file; in the environment it is in capitals.
const CONNECTION_STRING: &str = "azure_storage_connection_string";
/// Largest file with credentials or certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How an object store is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectOptions {
    /// Where it answers, if it is not its maker's: `https://minio.example.com:9000`.
    pub endpoint: Option<String>,
    /// The bucket's region, of S3.
    pub region: Option<String>,
    /// Whether the bucket is a part of the host's name and not of the path, of S3.
    pub virtual_hosts: bool,
    /// Whether requests may go unencrypted.
    pub allow_http: bool,
    /// Certificates, as PEM, of whom to trust beside those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// File with the credentials: `key = value` in each line as the environment has them, of Google the JSON of a service account.
    pub credentials_file: Option<PathBuf>,
    /// What the caller calls these settings, for refusals to name.
    pub setting: String,
}

impl ObjectOptions {
    fn refused(&self, location: &ObjectLocation, reason: String, remedy: &str) -> RepositoryError {
        RepositoryError::Refused {
            file: location.to_string(),
            doing: "open",
            reason,
            remedy: match self.setting.as_str() {
                "" => remedy.to_owned(),
                setting => format!("{remedy} ({setting})"),
            },
        }
    }

    fn read(&self, location: &ObjectLocation, path: &Path) -> Result<String, RepositoryError> {
        let unreadable = |error: std::io::Error| {
            let reason = format!("{} cannot be read: {error}", path.display());
            self.refused(location, reason, "name a file that mount-svc may read")
        };
        let size_bytes = std::fs::metadata(path).map_err(unreadable)?.len();
        if size_bytes > FILE_BYTES_MAX {
            let reason = format!("{} is far larger than such a file can be", path.display());
            return Err(self.refused(location, reason, "name another file"));
        }
        std::fs::read_to_string(path).map_err(unreadable)
    }

    /// Keys and values of the file with the credentials.
    fn credentials(
        &self,
        location: &ObjectLocation,
    ) -> Result<Vec<(String, String)>, RepositoryError> {
        let Some(path) = &self.credentials_file else {
            return Ok(Vec::new());
        };
        let text = self.read(location, path)?;
        parse_credentials(&text).map_err(|line| {
            let reason = format!("line {line} of {} is no credential", path.display());
            self.refused(location, reason, "write one key = value in each line")
        })
    }
}

/// What is common to all stores. Variables of the environment that are about the connection come first, the configuration wins.
fn client_options(
    location: &ObjectLocation,
    options: &ObjectOptions,
    variables: &[(ClientConfigKey, String)],
) -> Result<ClientOptions, RepositoryError> {
    let mut client = ClientOptions::new()
        .with_connect_timeout(CONNECT_MAX)
        .with_timeout(REQUEST_MAX);
    for (key, value) in variables {
        client = client.with_config(*key, value);
    }
    if options.allow_http {
        client = client.with_allow_http(true);
    }
    if let Some(path) = &options.ca_file {
        let pem = options.read(location, path)?;
        let certificates = Certificate::from_pem_bundle(pem.as_bytes()).unwrap_or_default();
        if certificates.is_empty() {
            let reason = format!("{} holds no certificate as PEM", path.display());
            return Err(options.refused(location, reason, "name another ca_file"));
        }
        for certificate in certificates {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

fn retry(limits: &ObjectLimits) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            max_backoff: BACKOFF_MAX,
            ..BackoffConfig::default()
        },
        // The time is the limit.
        max_retries: usize::MAX,
        retry_timeout: limits.retry_for,
    }
}

/// Settings from the environment that the library knows: what is `AWS_REGION` there is `aws_region` to it. Where a file has the
/// credentials, nothing of the environment is mixed with them.
fn from_environment<K: std::str::FromStr>(
    prefix: &str,
    options: &ObjectOptions,
) -> Vec<(K, String)> {
    if options.credentials_file.is_some() {
        return Vec::new();
    }
    let known = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str().filter(|name| name.starts_with(prefix))?;
        let key = name.to_ascii_lowercase().parse().ok()?;
        Some((key, value.into_string().ok()?))
    });
    known.collect()
}

/// A client for a bucket; nothing is asked of the store yet.
pub(super) fn connect(
    location: &ObjectLocation,
    options: &ObjectOptions,
    limits: &ObjectLimits,
) -> Result<Arc<dyn Bucket>, RepositoryError> {
    // One for the whole process; that another part has chosen one already is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
    refuse_unencrypted(location, options, options.endpoint.as_deref())?;
    match location.kind {
        ObjectStoreKind::S3 => s3(location, options, limits),
        ObjectStoreKind::Azure => azure(location, options, limits),
        ObjectStoreKind::Google => google(location, options, limits),
    }
}

fn refuse_unencrypted(
    location: &ObjectLocation,
    options: &ObjectOptions,
    endpoint: Option<&str>,
) -> Result<(), RepositoryError> {
    let plain = endpoint.filter(|endpoint| endpoint.starts_with("http:"));
    match plain.is_some() && !options.allow_http {
        true => Err(options.refused(
            location,
            "its endpoint is unencrypted".to_owned(),
            "name an endpoint with https, or set allow_http where nobody can listen",
        )),
        false => Ok(()),
    }
}

fn unknown_key(location: &ObjectLocation, options: &ObjectOptions, key: &str) -> RepositoryError {
    let reason = format!("{key:?} in its file with credentials is unknown");
    options.refused(
        location,
        reason,
        "use the names of the variables of the environment",
    )
}

// What a builder says names the settings that are missing or wrong, and no values of credentials.
fn unusable(
    location: &ObjectLocation,
    options: &ObjectOptions,
    error: &object_store::Error,
) -> RepositoryError {
    let reason = cause_of(error);
    options.refused(
        location,
        reason,
        "see the repository's settings for its object store",
    )
}

fn s3(
    location: &ObjectLocation,
    options: &ObjectOptions,
    limits: &ObjectLimits,
) -> Result<Arc<dyn Bucket>, RepositoryError> {
    let mut builder = AmazonS3Builder::new();
    let mut connection = Vec::new();
    if options.credentials_file.is_none() {
        let profile = aws_profile(&|name| std::env::var(name).ok(), &|path| {
            options.read(location, path)
        });
        let profile = profile.map_err(|refusal| match refusal {
            ProfileRefusal::Unreadable(error) => error,
            ProfileRefusal::Unusable { reason, remedy } => {
                options.refused(location, reason, remedy)
            }
        })?;
        for (key, value) in profile {
            if matches!(key, AmazonS3ConfigKey::Endpoint) && options.endpoint.is_none() {
                refuse_unencrypted(location, options, Some(&value))?;
            }
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in from_environment("AWS_", options) {
        match key {
            AmazonS3ConfigKey::Client(key) => connection.push((key, value)),
            key => builder = builder.with_config(key, value),
        }
    }
    for (key, value) in options.credentials(location)? {
        let known = key.parse::<AmazonS3ConfigKey>();
        let known = known.map_err(|_| unknown_key(location, options, &key))?;
        builder = builder.with_config(known, value);
    }
    builder = builder
        .with_bucket_name(&location.bucket)
        .with_client_options(client_options(location, options, &connection)?)
        .with_retry(retry(limits));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if options.virtual_hosts {
        builder = builder.with_virtual_hosted_style_request(true);
    }
    let store = builder.build();
    let store = store.map_err(|error| unusable(location, options, &error))?;
    Ok(Arc::new(store))
}

fn azure(
    location: &ObjectLocation,
    options: &ObjectOptions,
    limits: &ObjectLimits,
) -> Result<Arc<dyn Bucket>, RepositoryError> {
    let mut builder = MicrosoftAzureBuilder::new();
    let mut connection = Vec::new();
    for (key, value) in from_environment("AZURE_", options) {
        match key {
            AzureConfigKey::Client(key) => connection.push((key, value)),
            key => builder = builder.with_config(key, value),
        }
    }
    let mut from_file = options.credentials(location)?;
    let of_file = from_file
        .extract_if(.., |(key, _)| key == CONNECTION_STRING)
        .map(|(_, value)| value)
        .last();
    let connection_string = match options.credentials_file {
        Some(_) => of_file,
        None => std::env::var(CONNECTION_STRING.to_ascii_uppercase()).ok(),
    };
    if let Some(text) = connection_string {
        let settings = parse_connection_string(&text).map_err(|reason| {
            let remedy = "copy the connection string of the storage account as Azure shows it";
            options.refused(location, format!("its connection string {reason}"), remedy)
        })?;
        for (key, value) in settings {
            if matches!(key, AzureConfigKey::Endpoint) && options.endpoint.is_none() {
                refuse_unencrypted(location, options, Some(&value))?;
            }
            builder = builder.with_config(key, value);
        }
    }
    for (key, value) in from_file {
        let known = key.parse::<AzureConfigKey>();
        let known = known.map_err(|_| unknown_key(location, options, &key))?;
        builder = builder.with_config(known, value);
    }
    builder = builder
        .with_container_name(&location.bucket)
        .with_client_options(client_options(location, options, &connection)?)
        .with_retry(retry(limits));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let store = builder.build();
    let store = store.map_err(|error| unusable(location, options, &error))?;
    Ok(Arc::new(store))
}

fn google(
    location: &ObjectLocation,
    options: &ObjectOptions,
    limits: &ObjectLimits,
) -> Result<Arc<dyn Bucket>, RepositoryError> {
    let mut builder = GoogleCloudStorageBuilder::new();
    let mut connection = Vec::new();
    for (key, value) in from_environment("GOOGLE_", options) {
        match key {
            GoogleConfigKey::Client(key) => connection.push((key, value)),
            key => builder = builder.with_config(key, value),
        }
    }
    if let Some(path) = &options.credentials_file {
        let key = options.read(location, path)?;
        builder = builder.with_config(GoogleConfigKey::ServiceAccountKey, key);
    }
    builder = builder
        .with_bucket_name(&location.bucket)
        .with_client_options(client_options(location, options, &connection)?)
        .with_retry(retry(limits));
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint);
    }
    let store = builder.build();
    let store = store.map_err(|error| match &options.credentials_file {
        // What is wrong with a key is told in words that do not say so.
        Some(path) => {
            let (path, cause) = (path.display(), cause_of(&error));
            let reason = format!("the service account in {path} cannot be used ({cause})");
            let remedy =
                "put the JSON there that Google gives out for a key of the account, unchanged";
            options.refused(location, reason, remedy)
        }
        None => unusable(location, options, &error),
    })?;
    Ok(Arc::new(store))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::objects::{ObjectAccess, ObjectStorage};

    fn open(location: &str, options: &ObjectOptions) -> Result<ObjectStorage, RepositoryError> {
        let location = ObjectLocation::parse(location).unwrap().unwrap();
        ObjectStorage::new(&location, options, &Arc::default())
    }

    #[test]
    fn settings_that_do_not_fit_are_refused_by_name_and_secrets_are_not_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            "access_key_id = AKIA\nsecret_key_of_mine = SECRET\n",
        )
        .unwrap();
        let path = file.path().to_owned();
        let with = |change: fn(&mut ObjectOptions, PathBuf)| {
            let mut options = ObjectOptions {
                setting: "repositories.main.object_store".to_owned(),
                ..ObjectOptions::default()
            };
            change(&mut options, path.clone());
            options
        };
        for (options, told) in [
            (
                with(|o, path| o.credentials_file = Some(path)),
                "secret_key_of_mine",
            ),
            (
                with(|o, _| o.credentials_file = Some("/no/such".into())),
                "/no/such",
            ),
            (with(|o, path| o.ca_file = Some(path)), "certificate"),
            (
                with(|o, _| o.endpoint = Some("http://s3.local".into())),
                "unencrypted",
            ),
        ] {
            let error = open("s3://b/p", &options).unwrap_err();
            let shown = format!("{error} {} {error:?}", error.remedy());
            assert!(
                shown.contains(told) && shown.contains("s3://b/p"),
                "{shown}"
            );
            assert!(shown.contains("repositories.main.object_store"), "{shown}");
            assert!(!shown.contains("SECRET"), "{shown}");
            assert!(error.is_permanent());
        }
    }

    #[test]
    fn a_store_that_nobody_answers_for_is_a_temporary_error_that_names_the_object() {
        let options = ObjectOptions {
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            allow_http: true,
            ..ObjectOptions::default()
        };
        let access = Arc::new(ObjectAccess::new(ObjectLimits {
            retry_for: Duration::ZERO,
            ..ObjectLimits::default()
        }));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "access_key_id = a\nsecret_access_key = b\n").unwrap();
        let options = ObjectOptions {
            credentials_file: Some(file.path().to_owned()),
            ..options
        };
        let location = ObjectLocation::parse("s3://b/p").unwrap().unwrap();
        let storage = Arc::new(ObjectStorage::new(&location, &options, &access).unwrap());
        let error = storage.file("backup/main/backup.info").unwrap_err();
        let error = RepositoryError::unreadable("backup.info", "open", error);
        assert!(!error.is_permanent(), "{error}");
        let shown = error.to_string();
        assert!(
            shown.contains("s3://b/p/backup/main/backup.info"),
            "{shown}"
        );
        assert!(storage.file("../other").is_err());
    }
}
