//! Results and what is known of this host in one file for an issue tracker, with nothing private in
//! it. Only fields that are known are taken; text in them loses what names a host, a user, an
//! address, a path or an identity.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use super::results::Results;
use crate::commands::doctor::Fact;

/// The schema's name and version.
const SCHEMA: &str = "dunlin.bench-report/1";

/// The shortest name that is looked for: shorter ones are part of too many words.
const NAME_LETTERS_MIN: usize = 3;

/// What stands for what was taken away.
const TAKEN: &str = "[private]";

/// The file.
#[derive(Serialize)]
struct Bundle<'a> {
    schema: &'static str,
    dunlin: &'static str,
    /// What `dunlin doctor` finds on this host, without advice.
    host: &'a [Fact],
    results: &'a [Results],
}

/// The bundle as JSON. `names` are this host's and its user's.
///
/// # Errors
///
/// When there is no JSON form.
pub(crate) fn bundle(
    host: &[Fact],
    results: &[Results],
    names: &[String],
) -> serde_json::Result<String> {
    let mut value = serde_json::to_value(Bundle {
        schema: SCHEMA,
        dunlin: env!("CARGO_PKG_VERSION"),
        host,
        results,
    })?;
    let names: Vec<&str> = names
        .iter()
        .map(|name| name.trim())
        .filter(|name| name.chars().count() >= NAME_LETTERS_MIN)
        .collect();
    clean_all(&mut value, &names);
    let mut text = serde_json::to_string_pretty(&value)?;
    text.push('\n');
    Ok(text)
}

/// What names this host and this user.
pub(crate) fn own_names() -> Vec<String> {
    let system = rustix::system::uname();
    let host = system.nodename().to_string_lossy().into_owned();
    let first = host.split('.').next().unwrap_or_default().to_owned();
    let users = ["USER", "LOGNAME", "SUDO_USER", "HOSTNAME"];
    let users = users.iter().filter_map(|name| std::env::var(name).ok());
    [host, first].into_iter().chain(users).collect()
}

fn clean_all(value: &mut Value, names: &[&str]) {
    match value {
        Value::String(text) => *text = clean(text, names),
        Value::Array(values) => values.iter_mut().for_each(|value| clean_all(value, names)),
        Value::Object(fields) => fields
            .values_mut()
            .for_each(|value| clean_all(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A text without what is private in it: word by word, and names wherever they stand.
fn clean(text: &str, names: &[&str]) -> String {
    let is_between = |letter: char| letter.is_whitespace() || ",;()'\"<>=|".contains(letter);
    let mut cleaned = String::with_capacity(text.len());
    let mut word = String::new();
    for letter in text.chars() {
        if is_between(letter) {
            cleaned.push_str(&clean_word(&word, names));
            word.clear();
            cleaned.push(letter);
        } else {
            word.push(letter);
        }
    }
    cleaned.push_str(&clean_word(&word, names));
    cleaned
}

fn clean_word(word: &str, names: &[&str]) -> String {
    let bare = word.trim_matches(|letter: char| ".:[]!?".contains(letter));
    let lower = bare.to_lowercase();
    let has_name = names
        .iter()
        .any(|name| has_word(&lower, &name.to_lowercase()));
    if has_name || is_address(bare) || is_identity(bare) || is_path(bare) {
        return TAKEN.to_owned();
    }
    word.to_owned()
}

/// Whether a name stands in a word, with nothing that could belong to it on either side.
fn has_word(word: &str, name: &str) -> bool {
    word.match_indices(name).any(|(place, _)| {
        let before = word.get(..place).and_then(|text| text.chars().next_back());
        let behind = word
            .get(place + name.len()..)
            .and_then(|text| text.chars().next());
        ![before, behind]
            .into_iter()
            .flatten()
            .any(|letter| letter.is_ascii_alphanumeric())
    })
}

/// IP addresses, with or without port, prefix length or zone; MAC addresses and GIDs; endpoints.
fn is_address(word: &str) -> bool {
    if word.contains("://") || word.contains('@') {
        return true;
    }
    let word = word.split(['/', '%']).next().unwrap_or_default();
    let without_port = word.rsplit_once(':').map_or(word, |(host, _)| host);
    let is_ip = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_hardware = |separator: char| {
        let pieces: Vec<&str> = word.split(separator).collect();
        let is_byte =
            |piece: &&str| piece.len() == 2 && piece.bytes().all(|byte| byte.is_ascii_hexdigit());
        // Ethernet's six, and the eight and twenty of InfiniBand.
        matches!(pieces.len(), 6 | 8 | 20) && pieces.iter().all(is_byte)
    };
    let is_guid = || {
        let pieces: Vec<&str> = word.split(':').collect();
        pieces.len() == 4
            && pieces
                .iter()
                .all(|piece| piece.len() == 4 && piece.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    is_ip(word) || is_ip(without_port) || is_hardware(':') || is_hardware('-') || is_guid()
}

/// UUIDs and sessions' ids: 32 hexadecimal digits, with or without hyphens, and longer ones.
fn is_identity(word: &str) -> bool {
    let digits: String = word.chars().filter(|letter| *letter != '-').collect();
    digits.len() >= 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        // The names of a bench's guests.
        || word.split('-').any(|piece| piece.len() == 32 && piece.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Paths: absolute, in a home, or relative. A rate, as in `MiB/s`, is none.
fn is_path(word: &str) -> bool {
    word.starts_with('/') && word.len() > 1
        || word.starts_with("~/")
        || word.starts_with("./")
        || word.starts_with("../")
        || word.matches('/').count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::example;

    const NAMES: [&str; 2] = ["secrethost", "alice"];

    #[test]
    fn what_is_private_is_taken_and_the_rest_stays() {
        for private in [
            "10.1.2.3",
            "10.1.2.3:7471",
            "10.1.2.0/24",
            "[2001:db8::1]:7471",
            "2001:db8::1",
            "fe80::1%eth0",
            "02:42:ac:11:00:02",
            "02-42-ac-11-00-02",
            "0002:c903:00a1:b2c3",
            "fe80:0000:0000:0000:0002:c903:00a1:b2c3",
            "b9ae0371-e9fb-4730-8758-82915c1f9c7c",
            "b9ae0371e9fb4730875882915c1f9c7c",
            "bench-b9ae0371e9fb4730875882915c1f9c7c",
            "/home/alice/vm.img",
            "~/vm.img",
            "../private/vm.img",
            "var/lib/private",
            "tcp://customer.example:7471",
            "root@customer",
            "SecretHost.example.org",
            "alice's",
        ] {
            for text in [
                private.to_owned(),
                format!("the move failed: {private}: no route"),
                format!("({private}), '{private}'."),
            ] {
                let cleaned = clean(&text, &NAMES);
                assert!(!cleaned.contains(private), "{text}: {cleaned}");
                assert!(cleaned.contains(TAKEN), "{text}: {cleaned}");
            }
        }
        for public in [
            "tcp, 2 lanes, 1 GiB, 100MiB/s sequential, kvm",
            "Linux 6.18.44-fc-v470, x86_64",
            "AMD EPYC 7763 64-Core Processor",
            "2 lanes against 1 lane: goodput 1.23 times (95 %: 1.10 to 1.31, 7 passes): more",
            "mlx5_0 port 1, RoCE",
            "no RDMA: no device",
            "malice aforethought",
        ] {
            assert_eq!(clean(public, &NAMES), public);
        }
    }

    #[test]
    fn planted_strings_do_not_get_through() {
        let planted = [
            "secrethost",
            "alice",
            "10.9.8.7",
            "/srv/customers/acme.img",
            "b9ae0371-e9fb-4730-8758-82915c1f9c7c",
            "de:ad:be:ef:00:01",
        ];
        let mut results = example::results(2);
        let all = planted.join(" ");
        results.cells[0].runs[0].reason = Some(all.clone());
        results.cells[0].left_out = Some(all.clone());
        results.cells[1].runs[0].mechanism = all.clone();
        results.references[0].what = all.clone();
        results.host.cpu = format!("A Processor of {all}");
        results.verdicts[0].words = all.clone();
        let host = [Fact {
            name: "rdma",
            state: "ok".to_owned(),
            found: format!("rxe0 port 1, RoCE: {all}"),
        }];
        let names = NAMES.map(str::to_owned);
        let text = bundle(&host, &[results.clone()], &names).unwrap();
        for secret in planted {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        assert!(text.contains("rxe0 port 1, RoCE"));
        // Fields that are not known are not taken at all.
        let mut value = serde_json::to_value(&results).unwrap();
        value["host"]["hostname"] = "a-secret-in-a-new-field".into();
        value["extra"] = "another-secret".into();
        let read = Results::parse(&value.to_string()).unwrap();
        let text = bundle(&[], &[read], &names).unwrap();
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn this_host_and_user_are_known() {
        let names = own_names();
        assert!(names.iter().any(|name| !name.is_empty()), "{names:?}");
    }
}
