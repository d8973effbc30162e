//! Credentials in the forms that files and variables have them.

use object_store::azure::AzureConfigKey;

/// `key = value` in each line. Comments, and the headings of files of the AWS command line, are passed over.
pub(super) fn parse_credentials(text: &str) -> Result<Vec<(String, String)>, usize> {
    let mut found: Vec<(String, String)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) || line == "[default]" {
            continue;
        }
        let (key, value) = line.split_once('=').ok_or(number)?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().to_owned());
        let is_new = found.iter().all(|(other, _)| *other != key);
        if key.is_empty() || value.is_empty() || !is_new {
            return Err(number);
        }
        found.push((key, value));
    }
    Ok(found)
}

/// Azure's connection string: `AccountName=…;AccountKey=…;EndpointSuffix=…`. What is wrong with it, without what it says.
pub(super) fn parse_connection_string(
    text: &str,
) -> Result<Vec<(AzureConfigKey, String)>, &'static str> {
    let mut settings = Vec::new();
    let (mut protocol, mut account, mut suffix, mut endpoint) = ("https", None, None, None);
    for part in text.trim().split(';').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or("has a part without a =")?;
        match key.trim().to_ascii_lowercase().as_str() {
            "accountname" => account = Some(value),
            "accountkey" => settings.push((AzureConfigKey::AccessKey, value.to_owned())),
            "sharedaccesssignature" => settings.push((AzureConfigKey::SasKey, value.to_owned())),
            "defaultendpointsprotocol" => protocol = value,
            "endpointsuffix" => suffix = Some(value),
            "blobendpoint" => endpoint = Some(value.trim_end_matches('/').to_owned()),
            "usedevelopmentstorage" if value.eq_ignore_ascii_case("true") => {
                settings.push((AzureConfigKey::UseEmulator, "true".to_owned()));
                return Ok(settings);
            }
            // Of queues, tables and files.
            _ => {}
        }
    }
    let own = endpoint.is_none() && (suffix.is_some() || protocol != "https");
    if let (true, Some(account)) = (own, account) {
        let suffix = suffix.unwrap_or("core.windows.net");
        endpoint = Some(format!("{protocol}://{account}.blob.{suffix}"));
    }
    // With a signature for it an endpoint begins with its account.
    let told = endpoint.as_deref().and_then(account_of).map(str::to_owned);
    let account = account.map(str::to_owned).or(told);
    let account = account.ok_or("names no account")?;
    settings.push((AzureConfigKey::AccountName, account));
    settings.extend(endpoint.map(|endpoint| (AzureConfigKey::Endpoint, endpoint)));
    Ok(settings)
}

fn account_of(endpoint: &str) -> Option<&str> {
    let (_, host) = endpoint.split_once("://")?;
    let (account, _) = host.split_once(".blob.")?;
    Some(account).filter(|account| !account.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_credentials_has_a_key_and_a_value_in_each_line() {
        let text = "# of the AWS command line\n[default]\naws_access_key_id = AKIA\nAWS_SECRET_ACCESS_KEY=a=b/c\n";
        let found = parse_credentials(text).unwrap();
        let wanted = [
            ("aws_access_key_id", "AKIA"),
            ("aws_secret_access_key", "a=b/c"),
        ];
        let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(found, wanted);
        for (text, line) in [
            ("a=b\nc", 2),
            ("=b", 1),
            ("a=", 1),
            ("a=1\n\nA=2", 3),
            ("[other]", 1),
        ] {
            assert_eq!(parse_credentials(text), Err(line), "{text}");
        }
    }

    #[test]
    fn a_connection_string_says_account_key_and_endpoint() {
        let check = |text: &str, wanted: &[(AzureConfigKey, &str)]| {
            let mut found = parse_connection_string(text).unwrap();
            let mut wanted: Vec<_> = wanted
                .iter()
                .map(|(key, value)| (*key, (*value).to_owned()))
                .collect();
            found.sort_by_key(|(key, _)| key.as_ref().to_owned());
            wanted.sort_by_key(|(key, _)| key.as_ref().to_owned());
            assert_eq!(found, wanted, "{text}");
        };
        let account = (AzureConfigKey::AccountName, "shop");
        let key = (AzureConfigKey::AccessKey, "a+b/c==");
        check(
            "DefaultEndpointsProtocol=https;AccountName=shop;AccountKey=a+b/c==;EndpointSuffix=core.windows.net",
            &[
                account,
                key,
                (
                    AzureConfigKey::Endpoint,
                    "https://shop.blob.core.windows.net",
                ),
            ],
        );
        check("AccountName=shop;AccountKey=a+b/c==;", &[account, key]);
        check(
            "AccountName=shop;AccountKey=a+b/c==;QueueEndpoint=http://q/;BlobEndpoint=http://127.0.0.1:10000/shop/",
            &[
                account,
                key,
                (AzureConfigKey::Endpoint, "http://127.0.0.1:10000/shop"),
            ],
        );
        check(
            "BlobEndpoint=https://shop.blob.core.windows.net/;SharedAccessSignature=sv=2022&sig=x%3D",
            &[
                account,
                (AzureConfigKey::SasKey, "sv=2022&sig=x%3D"),
                (
                    AzureConfigKey::Endpoint,
                    "https://shop.blob.core.windows.net",
                ),
            ],
        );
        check(
            "UseDevelopmentStorage=true",
            &[(AzureConfigKey::UseEmulator, "true")],
        );
        for bad in [
            "",
            "AccountKey=a",
            "AccountName",
            "BlobEndpoint=https://host/x",
        ] {
            assert!(parse_connection_string(bad).is_err(), "{bad}");
        }
    }
}
