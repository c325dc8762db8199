//! Lanes that compress: the whole suite, with each codec, over memory of both kinds.

use dunlin_transports::tcp::ZstdLevel;

use super::*;

const LZ4: Tcp = Tcp {
    compression: Compression::Lz4,
    ..AUTOMATIC
};

const ZSTD: Tcp = Tcp {
    mechanism: Mechanism::Plain,
    compression: Compression::Zstd {
        level: ZstdLevel::MIN,
    },
    ..AUTOMATIC
};

const BY_ITSELF: Tcp = Tcp {
    compression: Compression::Auto,
    ..AUTOMATIC
};

mod lz4 {
    dunlin_transports::conformance_tests!(super::LZ4);
}

mod zstd {
    dunlin_transports::conformance_tests!(super::ZSTD);
}

mod by_itself {
    dunlin_transports::conformance_tests!(super::BY_ITSELF);
}

#[test]
fn the_mechanism_names_it() {
    assert_eq!(ZSTD.endpoint_mechanism(), "writev, zstd:1");
    let mechanism = BY_ITSELF.endpoint_mechanism();
    assert!(mechanism.ends_with(", lz4 where it pays"), "{mechanism}");
}

#[test]
fn a_guest_that_writes_while_its_batches_are_compressed_arrives_whole_in_the_end() {
    for harness in [LZ4, ZSTD] {
        let sent = writing::arrives_whole_in_the_end(&harness);
        assert!(sent.source.compressed_bytes > 0);
        assert!(sent.source.compressing > Duration::ZERO);
        assert_eq!(
            sent.destination.compressed_bytes,
            sent.source.compressed_bytes
        );
        assert_eq!(sent.destination.payload_bytes, sent.source.payload_bytes);
    }
}
