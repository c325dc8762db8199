//! What is compared: one row each.

use std::fmt;

use clap::ValueEnum;

use crate::raw::Memory;

/// Over what bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Link {
    /// The loopback interface.
    Loopback,
    /// A veth pair between two network namespaces.
    Veth,
}

impl Link {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::Loopback, Self::Veth];
}

impl fmt::Display for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Loopback => "loopback",
            Self::Veth => "veth",
        })
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) link: Link,
    /// Its name; with the link it is there once.
    pub(crate) name: String,
    pub(crate) what: What,
}

/// What is run for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Plain send and recv.
    Raw { streams: u32, memory: Memory },
    /// `iperf3`.
    Iperf { streams: u32 },
    /// A guest moved by Dunlin.
    Dunlin {
        way: DunlinWay,
        /// How much memory it rewrites, in MiB.
        hot_mebibytes: Option<u32>,
    },
    /// A guest moved by QEMU.
    Qemu {
        way: QemuWay,
        touched: bool,
        hot_mebibytes: Option<u32>,
    },
}

/// How QEMU moves a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QemuWay {
    /// One stream.
    Single,
    /// So many channels.
    Multifd(u8),
    /// The same with zero-copy-send.
    ZeroCopy(u8),
}

/// How Dunlin moves a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DunlinWay {
    pub(crate) lanes: u16,
    pub(crate) touched: bool,
    /// Whether its memory is private at the destination, not a file in memory as by default.
    pub(crate) private: bool,
}

/// Streams, lanes, channels.
const COUNTS: [u8; 3] = [1, 2, 4];

/// The sizes of hot sets, in MiB.
const HOT_MEBIBYTES: [u32; 2] = [64, 256];

/// All rows, in the table's order, which is also that of a pass.
pub(crate) fn all() -> Vec<Row> {
    Link::ALL.into_iter().flat_map(over).collect()
}

fn over(link: Link) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: String, what| rows.push(Row { link, name, what });
    for touched in [true, false] {
        let memory = if touched { "touched" } else { "fresh" };
        let kinds: &[Memory] = match touched {
            true => &[Memory::Touched],
            false => &[Memory::Fresh, Memory::FreshOfGuests],
        };
        for memory in kinds.iter().copied() {
            for count in COUNTS {
                let streams = count.into();
                add(
                    format!("raw socket, {}, {memory}", counted(count, "stream")),
                    What::Raw { streams, memory },
                );
            }
        }
        // Fresh memory costs what its kind costs.
        let kinds: &[bool] = if touched { &[false] } else { &[false, true] };
        for private in kinds.iter().copied() {
            for count in COUNTS {
                let way = DunlinWay {
                    lanes: count.into(),
                    touched,
                    private,
                };
                let what = What::Dunlin {
                    way,
                    hot_mebibytes: None,
                };
                let kind = if private { ", private" } else { "" };
                add(
                    format!("dunlin, {}, {memory}{kind}", counted(count, "lane")),
                    what,
                );
            }
        }
        let ways = [QemuWay::Single]
            .into_iter()
            .chain(COUNTS.map(QemuWay::Multifd))
            .chain([QemuWay::ZeroCopy(4)]);
        for way in ways {
            let name = match way {
                QemuWay::Single => "qemu, one stream".to_owned(),
                QemuWay::Multifd(count) => format!("qemu multifd, {}", counted(count, "channel")),
                QemuWay::ZeroCopy(count) => {
                    format!("qemu zero-copy-send, {}", counted(count, "channel"))
                }
            };
            let what = What::Qemu {
                way,
                touched,
                hot_mebibytes: None,
            };
            add(format!("{name}, {memory}"), what);
        }
    }
    for count in COUNTS {
        let streams = count.into();
        add(
            format!("iperf3, {}", counted(count, "stream")),
            What::Iperf { streams },
        );
    }
    for hot in HOT_MEBIBYTES {
        let (touched, hot_mebibytes) = (true, Some(hot));
        let way = DunlinWay {
            lanes: 2,
            touched,
            private: false,
        };
        let what = What::Dunlin { way, hot_mebibytes };
        add(format!("dunlin, 2 lanes, touched, hot {hot} MiB"), what);
        let what = What::Qemu {
            way: QemuWay::Multifd(2),
            touched,
            hot_mebibytes,
        };
        add(
            format!("qemu multifd, 2 channels, touched, hot {hot} MiB"),
            what,
        );
    }
    rows
}

fn counted(count: u8, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_row_is_there_twice() {
        let rows = all();
        for row in &rows {
            let same = rows.iter().filter(|other| {
                (other.link, &other.name) == (row.link, &row.name) || other == &row
            });
            assert_eq!(same.count(), 1, "{}", row.name);
        }
    }
}
