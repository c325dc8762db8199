//! Device state: named, versioned sections with numbered fields.
//!
//! What a section's fields mean is its owner's business; how they travel is this room's. A loader
//! takes the sections and fields that it knows, and then asks for what is left: anything unknown is
//! an error that carries its name, never skipped. A field that is missing has a documented default
//! or is an error of its own.
//!
//! On the wire: a CBOR array of `[name, version, {number: bytes, …}]`.

use std::collections::BTreeMap;

use minicbor::decode::Error as CborError;
use minicbor::{Decoder, Encoder};
use thiserror::Error;

/// The most bytes that a guest's whole device state may take. A vCPU's takes some 10 KiB (its
/// XSAVE area above all), so this is room for thousands.
pub const STATE_BYTES_MAX: usize = 64 << 20;

/// The most sections in one state.
pub const SECTIONS_MAX: usize = 8192;

/// The most fields in one section.
pub const FIELDS_MAX: usize = 4096;

/// The most fields in all sections together: each takes some 60 bytes here however few it has on
/// the wire, so this bounds what a peer's state becomes at 4 MiB beyond its bytes.
pub const STATE_FIELDS_MAX: usize = 65_536;

/// The longest name of a section, in bytes.
pub const SECTION_NAME_BYTES_MAX: usize = 64;

/// What is wrong with a device state.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// The bytes are not a device state.
    #[error("the device state can't be read: {0}")]
    Malformed(String),
    /// A section is there twice.
    #[error("section '{0}' is there twice")]
    Duplicate(String),
    /// A section that is needed is not there.
    #[error("section '{0}' is missing")]
    MissingSection(String),
    /// A section is of a version that this build does not read.
    #[error("section '{name}' has version {found}, this build reads up to {supported}")]
    Version {
        /// The section.
        name: String,
        /// Its version.
        found: u16,
        /// The newest that is read.
        supported: u16,
    },
    /// A field that is needed is not there.
    #[error("section '{section}' lacks field {field}")]
    MissingField {
        /// The section.
        section: String,
        /// The field's number.
        field: u16,
    },
    /// A field's bytes are not what its number says.
    #[error("section '{section}', field {field}: {reason}")]
    BadField {
        /// The section.
        section: String,
        /// The field's number.
        field: u16,
        /// What is wrong.
        reason: String,
    },
    /// Nothing here knows this section.
    #[error("section '{0}' is not known to this build")]
    UnknownSection(String),
    /// The section's owner does not know this field.
    #[error("section '{section}' has field {field}, which is not known to this build")]
    UnknownField {
        /// The section.
        section: String,
        /// The field's number.
        field: u16,
    },
}

/// One part of a guest's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Section {
    name: String,
    version: u16,
    fields: BTreeMap<u16, Vec<u8>>,
}

impl Section {
    /// An empty section.
    pub fn new(name: impl Into<String>, version: u16) -> Self {
        Self {
            name: name.into(),
            version,
            fields: BTreeMap::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Adds a field (or replaces it).
    pub fn put(&mut self, field: u16, bytes: impl Into<Vec<u8>>) -> &mut Self {
        self.fields.insert(field, bytes.into());
        self
    }

    /// Adds a field that holds a number, little-endian.
    pub fn put_u64(&mut self, field: u16, value: u64) -> &mut Self {
        self.put(field, value.to_le_bytes())
    }

    /// Takes a field out, if it is there.
    pub fn take(&mut self, field: u16) -> Option<Vec<u8>> {
        self.fields.remove(&field)
    }

    /// Takes out a field that has to be there.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn require(&mut self, field: u16) -> Result<Vec<u8>, StateError> {
        self.take(field).ok_or_else(|| StateError::MissingField {
            section: self.name.clone(),
            field,
        })
    }

    /// Takes out a number that has to be there.
    ///
    /// # Errors
    ///
    /// When it is not there or is not 8 bytes long.
    pub fn require_u64(&mut self, field: u16) -> Result<u64, StateError> {
        let bytes = self.require(field)?;
        let bytes = <[u8; 8]>::try_from(bytes.as_slice())
            .map_err(|_| self.bad(field, format!("{} bytes instead of 8", bytes.len())))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The error that says what is wrong with a field of this section.
    pub fn bad(&self, field: u16, reason: impl Into<String>) -> StateError {
        StateError::BadField {
            section: self.name.clone(),
            field,
            reason: reason.into(),
        }
    }

    /// Ends reading: whatever was not taken is unknown.
    ///
    /// # Errors
    ///
    /// When a field is left.
    pub fn finish(self) -> Result<(), StateError> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(field) => Err(StateError::UnknownField {
                section: self.name.clone(),
                field: *field,
            }),
        }
    }
}

/// A guest's state besides its memory (or its configuration, before the move).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DeviceState {
    sections: Vec<Section>,
}

impl DeviceState {
    /// No state.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sections, in the order in which they were added.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Adds a section.
    pub fn push(&mut self, section: Section) {
        self.sections.push(section);
    }

    /// Takes out a section that has to be there, of at most version `supported`.
    ///
    /// # Errors
    ///
    /// When it is not there or is newer.
    pub fn require(&mut self, name: &str, supported: u16) -> Result<Section, StateError> {
        self.take(name, supported)?
            .ok_or_else(|| StateError::MissingSection(name.to_owned()))
    }

    /// Takes out a section, if it is there, of at most version `supported`.
    ///
    /// # Errors
    ///
    /// When it is newer.
    pub fn take(&mut self, name: &str, supported: u16) -> Result<Option<Section>, StateError> {
        let Some(index) = self
            .sections
            .iter()
            .position(|section| section.name == name)
        else {
            return Ok(None);
        };
        let section = self.sections.remove(index);
        if section.version > supported {
            return Err(StateError::Version {
                name: section.name,
                found: section.version,
                supported,
            });
        }
        Ok(Some(section))
    }

    /// Ends reading: whatever was not taken is unknown.
    ///
    /// # Errors
    ///
    /// When a section is left.
    pub fn finish(self) -> Result<(), StateError> {
        match self.sections.into_iter().next() {
            None => Ok(()),
            Some(section) => Err(StateError::UnknownSection(section.name)),
        }
    }

    /// The state's bytes.
    ///
    /// # Errors
    ///
    /// When it is larger than a peer would take.
    pub fn encode(&self) -> Result<Vec<u8>, StateError> {
        let too_large = || StateError::Malformed(format!("more than {STATE_BYTES_MAX} bytes"));
        let mut encoder = Encoder::new(Vec::new());
        self.write(&mut encoder)
            .map_err(|error| StateError::Malformed(error.to_string()))?;
        let bytes = encoder.into_writer();
        if bytes.len() > STATE_BYTES_MAX || self.sections.len() > SECTIONS_MAX {
            return Err(too_large());
        }
        Ok(bytes)
    }

    fn write(
        &self,
        encoder: &mut Encoder<Vec<u8>>,
    ) -> Result<(), minicbor::encode::Error<std::convert::Infallible>> {
        encoder.array(self.sections.len() as u64)?;
        for section in &self.sections {
            encoder.array(3)?.str(&section.name)?.u16(section.version)?;
            encoder.map(section.fields.len() as u64)?;
            for (number, bytes) in &section.fields {
                encoder.u16(*number)?.bytes(bytes)?;
            }
        }
        Ok(())
    }

    /// Reads what `encode` wrote. Allocates no more than a small multiple of `bytes`.
    ///
    /// # Errors
    ///
    /// When the bytes are anything else, or a limit is passed.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let malformed = |error: CborError| StateError::Malformed(error.to_string());
        if bytes.len() > STATE_BYTES_MAX {
            return Err(StateError::Malformed(format!(
                "more than {STATE_BYTES_MAX} bytes"
            )));
        }
        let mut decoder = Decoder::new(bytes);
        let count = bounded(
            decoder.array().map_err(malformed)?,
            SECTIONS_MAX,
            "sections",
        )?;
        let mut state = Self::new();
        let mut fields = 0;
        for _ in 0..count {
            let section = decode_section(&mut decoder)?;
            if state
                .sections
                .iter()
                .any(|other| other.name == section.name)
            {
                return Err(StateError::Duplicate(section.name));
            }
            fields += section.fields.len();
            if fields > STATE_FIELDS_MAX {
                return Err(StateError::Malformed(format!(
                    "more than {STATE_FIELDS_MAX} fields"
                )));
            }
            state.push(section);
        }
        if decoder.position() != bytes.len() {
            return Err(StateError::Malformed(
                "bytes behind the last section".to_owned(),
            ));
        }
        Ok(state)
    }
}

fn decode_section(decoder: &mut Decoder<'_>) -> Result<Section, StateError> {
    let malformed = |error: CborError| StateError::Malformed(error.to_string());
    if decoder.array().map_err(malformed)? != Some(3) {
        return Err(StateError::Malformed(
            "a section is not an array of 3".to_owned(),
        ));
    }
    let name = decoder.str().map_err(malformed)?;
    if name.is_empty() || name.len() > SECTION_NAME_BYTES_MAX {
        return Err(StateError::Malformed(format!(
            "a section's name has {} bytes",
            name.len()
        )));
    }
    let mut section = Section::new(name, decoder.u16().map_err(malformed)?);
    let count = bounded(decoder.map().map_err(malformed)?, FIELDS_MAX, "fields")?;
    for _ in 0..count {
        let number = decoder.u16().map_err(malformed)?;
        let bytes = decoder.bytes().map_err(malformed)?;
        if section.fields.insert(number, bytes.to_vec()).is_some() {
            return Err(StateError::Duplicate(format!("{name}, field {number}")));
        }
    }
    Ok(section)
}

fn bounded(count: Option<u64>, limit: usize, what: &str) -> Result<u64, StateError> {
    match count {
        Some(count) if count <= limit as u64 => Ok(count),
        Some(count) => Err(StateError::Malformed(format!(
            "{count} {what}, at most {limit}"
        ))),
        None => Err(StateError::Malformed(format!(
            "{what} of indefinite length"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> DeviceState {
        let mut state = DeviceState::new();
        let mut section = Section::new("kvm.vcpu.0", 1);
        section.put(1, vec![1, 2, 3]).put_u64(7, 0x1122);
        state.push(section);
        state.push(Section::new("serial", 2));
        state
    }

    /// The bytes of version 1 stay readable for ever.
    #[test]
    fn golden_bytes() {
        let golden: &[u8] = &[
            0x82, 0x83, 0x6a, b'k', b'v', b'm', b'.', b'v', b'c', b'p', b'u', b'.', b'0', 0x01,
            0xa2, 0x01, 0x43, 1, 2, 3, 0x07, 0x48, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0x83, 0x66, b's',
            b'e', b'r', b'i', b'a', b'l', 0x02, 0xa0,
        ];
        assert_eq!(example().encode().unwrap(), golden);
        assert_eq!(DeviceState::decode(golden).unwrap(), example());
    }

    #[test]
    fn what_is_unknown_is_an_error_with_its_name() {
        let mut state = example();
        let mut section = state.require("kvm.vcpu.0", 1).unwrap();
        assert_eq!(section.require_u64(7).unwrap(), 0x1122);
        assert_eq!(
            section.clone().finish().unwrap_err().to_string(),
            "section 'kvm.vcpu.0' has field 1, which is not known to this build"
        );
        assert_eq!(
            section.require_u64(1).unwrap_err(),
            section.bad(1, "3 bytes instead of 8")
        );
        assert_eq!(
            state.clone().finish().unwrap_err(),
            StateError::UnknownSection("serial".to_owned())
        );
        assert!(matches!(
            state.require("serial", 1),
            Err(StateError::Version { found: 2, .. })
        ));
        assert!(state.finish().is_ok());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(state) = DeviceState::decode(&bytes) {
                state.encode().unwrap();
            }
        }

        #[test]
        fn mutated_bytes_never_panic(at in 0_usize..40, value in any::<u8>()) {
            let mut bytes = example().encode().unwrap();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            let _ = DeviceState::decode(&bytes);
        }
    }
}
