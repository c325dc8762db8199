//! What is private in a text, and the text without it: names of hosts and users, addresses, paths,
//! identities. A word that may be one of them is taken for one.

use std::net::IpAddr;

/// The shortest name that is looked for: shorter ones are part of too many words.
const NAME_LETTERS_MIN: usize = 3;

/// What stands for what was taken away.
const TAKEN: &str = "[private]";

/// Paths that name nobody's files; why something can't run is told with them.
const PATHS_OF_ALL_HOSTS: [&str; 3] = ["/dev/kvm", "/dev/userfaultfd", "/dev/infiniband"];

/// What stands before the slash of a rate.
const UNITS: [&str; 20] = [
    "B", "KiB", "MiB", "GiB", "TiB", "kB", "KB", "MB", "GB", "TB", "bit", "kbit", "Mbit", "Gbit",
    "Mb", "Gb", "bytes", "pages", "s", "ms",
];

/// And behind it.
const UNITS_BELOW: [&str; 3] = ["s", "sec", "GiB"];

/// Names that are private wherever they stand: of hosts and users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names(Vec<String>);

impl Names {
    /// These names, as far as they are long enough to be looked for.
    pub(crate) fn new(names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let names = names.into_iter();
        let names = names.map(|name| name.as_ref().trim().to_lowercase());
        let long = names.filter(|name| name.chars().count() >= NAME_LETTERS_MIN);
        Self(long.collect())
    }

    /// What names this host and this user, and another host, if there is one.
    pub(crate) fn of_this_host(other: Option<&str>) -> Self {
        let system = rustix::system::uname();
        let host = system.nodename().to_string_lossy().into_owned();
        let first = host.split('.').next().unwrap_or_default().to_owned();
        let users = ["USER", "LOGNAME", "SUDO_USER", "HOSTNAME"];
        let users = users.iter().filter_map(|name| std::env::var(name).ok());
        let others = other.map(str::to_owned);
        Self::new([host, first].into_iter().chain(users).chain(others))
    }
}

/// A text without what is private in it: word by word, and names wherever they stand.
pub(crate) fn clean(text: &str, names: &Names) -> String {
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

fn clean_word(word: &str, names: &Names) -> String {
    let bare = word.trim_matches(|letter: char| ".:[]!?".contains(letter));
    let lower = bare.to_lowercase();
    let has_name = names.0.iter().any(|name| has_word(&lower, name));
    if has_name || is_address(bare) || is_identity(bare) || is_path(bare) {
        // What stands around it belongs to the sentence.
        return word.replacen(bare, TAKEN, 1);
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

/// IP addresses, with or without port, prefix length or zone; MAC addresses and GIDs; endpoints, with
/// a scheme or without.
fn is_address(word: &str) -> bool {
    // An '@' alone stands in names of processors, before their frequency.
    if word.contains("://") || (word.contains('@') && word.len() > 1) || has_port(word) {
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

/// Whether something stands before a colon and a number behind it, as in an endpoint: the name of a
/// host can be any word.
fn has_port(word: &str) -> bool {
    word.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Paths: absolute, in a home, or relative, which is whatever has a slash in it; no rates, as in
/// `MiB/s`, and none that every host has.
fn is_path(word: &str) -> bool {
    let is_known = PATHS_OF_ALL_HOSTS.contains(&word);
    word.len() > 1 && word.contains('/') && !is_known && !is_rate(word)
}

/// A unit in each other one, with or without an amount before it.
fn is_rate(word: &str) -> bool {
    let unit = word.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == '.');
    unit.split_once('/')
        .is_some_and(|(each, in_one)| UNITS.contains(&each) && UNITS_BELOW.contains(&in_one))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "customers/acme.img",
            "customers/",
            "acme/s",
            "./acme",
            "customer.example:7471",
            "customer:1",
            "[2001:db8::1%eth0]:7471",
            "/dev/mapper/acme",
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
                let cleaned = clean(&text, &Names::new(NAMES));
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
            "1.5GB/s of 12 Gbit/s, 3 pages/s, cpu s/GiB",
            "no KVM: no /dev/kvm",
            "A(R) Processor(TM) CPU @ 2.80GHz",
            "QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0)",
        ] {
            assert_eq!(clean(public, &Names::new(NAMES)), public);
        }
    }

    #[test]
    fn this_host_and_user_are_known() {
        let names = Names::of_this_host(Some("customer"));
        assert!(names.0.contains(&"customer".to_owned()), "{names:?}");
        let system = rustix::system::uname();
        let host = system.nodename().to_string_lossy().to_lowercase();
        let is_long = host.chars().count() >= NAME_LETTERS_MIN;
        assert!(!is_long || names.0.contains(&host), "{names:?}");
    }

    #[test]
    fn what_was_cleaned_stays_as_it_is() {
        let text = "can't reach customer.example:7471: no route; alice's";
        let once = clean(text, &Names::new(NAMES));
        assert_eq!(once, "can't reach [private]: no route; [private]'s");
        assert_eq!(clean(&once, &Names::new(NAMES)), once);
    }
}
