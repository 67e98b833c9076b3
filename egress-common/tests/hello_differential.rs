//! Hellos of rustls, and hellos with lies, read by the machine and by tls-parser: the same name, or a refusal.

#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::wildcard_enum_match_arm,
    reason = "tests panic"
)]

use std::sync::Arc;

use egress_common::{
    hello::{HelloReader, SERVER_NAME_BYTES, read_segment},
    verdict::Reason,
};
use proptest::{collection::vec, prelude::*};
use rustls::{ClientConfig, ClientConnection, RootCertStore, crypto::ring, pki_types::ServerName};
use tls_parser::{
    SNIType, TlsExtension, TlsMessage, TlsMessageHandshake, parse_tls_client_hello_extensions,
    parse_tls_plaintext,
};

/// The name in segments, none yet, or why they are refused.
fn read(segments: &[&[u8]]) -> Result<Option<Vec<u8>>, Reason> {
    let mut reader = HelloReader::default();
    let mut name = [0; SERVER_NAME_BYTES];
    for segment in segments {
        if read_segment(&mut reader, &mut name, segment)? {
            let bytes = usize::try_from(reader.name_bytes).unwrap();
            return Ok(Some(name.get(..bytes).unwrap().to_vec()));
        }
    }
    Ok(None)
}

fn cut<'a>(bytes: &'a [u8], cuts: &[u16]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts
        .iter()
        .map(|cut| usize::from(*cut) % (bytes.len() + 1))
        .collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let mut at = 0;
    let segments = cuts.into_iter().map(|cut| {
        let segment = bytes.get(at..cut).unwrap();
        at = cut;
        segment
    });
    segments.collect()
}

/// The names in a hello as tls-parser reads it; `None` where it finds no hello.
fn names_of(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (_, record) = parse_tls_plaintext(bytes).ok()?;
    let [
        TlsMessage::Handshake(TlsMessageHandshake::ClientHello(hello)),
        ..,
    ] = record.msg.as_slice()
    else {
        return None;
    };
    let (rest, extensions) = parse_tls_client_hello_extensions(hello.ext?).ok()?;
    // It reads no further where it does not understand an extension.
    if !rest.is_empty() {
        return None;
    }
    let names = extensions.iter().filter_map(|extension| match extension {
        TlsExtension::SNI(names) => Some(names),
        _ => None,
    });
    let names = names
        .flatten()
        .filter(|(kind, _)| *kind == SNIType::HostName);
    Some(names.map(|(_, name)| name.to_vec()).collect())
}

/// A hello that rustls sends to a name.
fn hello_to(name: &str, is_old: bool) -> Vec<u8> {
    let versions: &[&rustls::SupportedProtocolVersion] = if is_old {
        &[&rustls::version::TLS12]
    } else {
        rustls::ALL_VERSIONS
    };
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same handshake bytes in records of other sizes.
fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let message = hello.get(5..).unwrap();
    let records = message.chunks(size).flat_map(|part| {
        let [high, low] = u16::try_from(part.len()).unwrap().to_be_bytes();
        [&[22, 3, 1, high, low][..], part].concat()
    });
    records.collect()
}

#[test]
fn an_address_is_not_sent_as_a_name() {
    assert_eq!(read(&[&hello_to("192.0.2.1", false)]), Err(Reason::NoName));
}

#[test]
fn each_byte_of_a_hello_leaves_before_its_last_one_decides() {
    let hello = hello_to("api.example.com", false);
    let (last, all_but_it) = hello.split_last().unwrap();
    assert_eq!(read(&[all_but_it]), Ok(None));
    let name = Some(b"api.example.com".to_vec());
    assert_eq!(read(&[all_but_it, &[*last]]), Ok(name));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hellos_of_rustls_are_read_however_they_are_cut(
        name in "[a-z][a-z0-9]{0,20}(\\.[a-z][a-z0-9-]{0,20}[a-z0-9]){1,6}",
        is_old: bool,
        record in 100_usize..2_000,
        cuts in vec(any::<u16>(), 0..12),
        behind in vec(any::<u8>(), 0..40),
    ) {
        let hello = hello_to(&name, is_old);
        prop_assert_eq!(names_of(&hello), Some(vec![name.clone().into_bytes()]));
        for bytes in [hello.clone(), in_records(&hello, record)] {
            let bytes = [bytes, behind.clone()].concat();
            prop_assert_eq!(read(&cut(&bytes, &cuts)), Ok(Some(name.clone().into_bytes())));
        }
    }

    #[test]
    fn hellos_with_lies_name_the_same_or_are_refused(
        lies in vec((any::<u16>(), any::<u8>()), 1..4),
        cuts in vec(any::<u16>(), 0..6),
    ) {
        let mut hello = hello_to("api.example.com", false);
        for (at, byte) in lies {
            let at = usize::from(at) % hello.len();
            *hello.get_mut(at).unwrap() = byte;
        }
        if let Ok(Some(name)) = read(&[&hello]) {
            if let Some(names) = names_of(&hello) {
                prop_assert_eq!(names, vec![name.clone()]);
            }
            prop_assert_eq!(read(&cut(&hello, &cuts)), Ok(Some(name)));
        }
    }

    #[test]
    fn no_bytes_make_the_machine_run_away(bytes in vec(any::<u8>(), 0..400), cuts in vec(any::<u16>(), 0..6)) {
        // It ends, and says the same of the whole, unless a part was enough to refuse it.
        if let Ok(Some(name)) = read(&[&bytes]) {
            prop_assert_eq!(read(&cut(&bytes, &cuts)), Ok(Some(name)));
        }
    }
}

#[test]
fn what_is_no_hello_is_refused_at_its_first_byte_that_is_none() {
    for (begin, next) in [
        (&[][..], b'E'),
        (&[22], 2),
        (&[22, 3], 5),
        (&[22, 3, 1, 0, 40], 2),
    ] {
        let mut reader = HelloReader::default();
        let mut name = [0; SERVER_NAME_BYTES];
        for byte in begin {
            let read = read_segment(&mut reader, &mut name, &[*byte]);
            assert_eq!(read, Ok(false), "{begin:?}");
        }
        let read = read_segment(&mut reader, &mut name, &[next]);
        assert_eq!(read, Err(Reason::NotTls), "{begin:?} {next}");
    }
}
