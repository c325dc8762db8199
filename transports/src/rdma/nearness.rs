//! Which processors are near a device, as the kernel tells.

use std::collections::BTreeSet;
use std::path::Path;

/// Processors have smaller numbers than this: what Linux can be built for (x86-64's largest
/// `NR_CPUS`).
const PROCESSORS_MAX: usize = 8192;

/// Reads a list of processors as the kernel writes it: `0-3,8,10-11`. `None` for anything else.
fn read_list(text: &str) -> Option<BTreeSet<usize>> {
    let mut processors = BTreeSet::new();
    let text = text.trim();
    // A list may be empty.
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        processors.extend(first..=last);
    }
    Some(processors)
}

fn number(digits: &str) -> Option<usize> {
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| is_plain)?;
    (number < PROCESSORS_MAX).then_some(number)
}

/// The processors near an RDMA device, of those that are online; none where the kernel does not
/// tell (a device in software has no place), or all are near.
pub(super) fn processors_near(device: &str) -> Vec<usize> {
    near(Path::new("/sys"), device)
}

fn near(sys: &Path, device: &str) -> Vec<usize> {
    let list = |path: &Path| read_list(&std::fs::read_to_string(path).ok()?);
    let place = sys.join("class/infiniband").join(device);
    let near = list(&place.join("device/local_cpulist"));
    let online = list(&sys.join("devices/system/cpu/online"));
    match (near, online) {
        (Some(near), Some(online)) if !near.is_superset(&online) => {
            near.intersection(&online).copied().collect()
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        for (text, expected) in [
            ("0\n", Some(vec![0])),
            ("0-3,8,10-11\n", Some(vec![0, 1, 2, 3, 8, 10, 11])),
            ("5-5", Some(vec![5])),
            ("\n", Some(vec![])),
            ("8191", Some(vec![8191])),
            ("8192", None),
            ("0-18446744073709551615", None),
            ("3-1", None),
            ("+1", None),
            ("1,", None),
            ("1-2-3", None),
            ("-1", None),
            ("all", None),
        ] {
            let read = read_list(text).map(|read| read.into_iter().collect::<Vec<_>>());
            assert_eq!(read, expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_list_is_read_back(ranges in proptest::collection::vec((0_usize..500, 0_usize..9), 1..9)) {
            let text: Vec<_> = ranges.iter().map(|(first, more)| match more {
                0 => first.to_string(),
                more => format!("{first}-{}", first + more),
            }).collect();
            let expected: BTreeSet<_> = ranges.iter().flat_map(|(first, more)| *first..=first + more).collect();
            prop_assert_eq!(read_list(&text.join(",")), Some(expected));
        }
    }

    /// A tree like `/sys` with one device, removed at the end.
    struct Tree(std::path::PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let process = std::process::id();
            let root = std::env::temp_dir().join(format!("dunlin-nearness-{process}-{name}"));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            drop(std::fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn processors_are_near_only_where_others_are_not() {
        let list = "class/infiniband/mlx5_0/device/local_cpulist";
        let online = ("devices/system/cpu/online", "0-7\n");
        for (name, files, expected) in [
            ("some", &[(list, "4-7\n"), online] as &[_], vec![4, 5, 6, 7]),
            ("offline", &[(list, "6-15\n"), online], vec![6, 7]),
            ("all", &[(list, "0-7\n"), online], vec![]),
            ("software", &[online], vec![]),
            ("nonsense", &[(list, "0-\n"), online], vec![]),
            ("unknown", &[(list, "4-7\n")], vec![]),
        ] {
            let tree = Tree::new(name, files);
            assert_eq!(near(&tree.0, "mlx5_0"), expected, "{name}");
        }
    }
}
