//! Sections of PE executables: what a unified kernel image (UKI) carries.
//!
//! Microsoft's "PE Format", sections "MS-DOS Stub", "COFF File Header" and "Section Table"; which
//! sections a UKI has: UAPI.5.

use std::ops::Range;

const COFF_HEADER: usize = 24;
const SECTION_HEADER: usize = 40;
/// Most sections that a file may have (the specification's limit for loaders).
const MAX_SECTIONS: usize = 96;

/// A file that is no PE executable, or not a whole one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{structure} at byte {at}: {reason}")]
pub struct PeError {
    /// The structure that is wrong.
    pub structure: &'static str,
    /// Where it is in the file.
    pub at: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// A section of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Section<'a> {
    /// Its name, such as `.initrd`, without the zeros behind it.
    pub name: &'a [u8],
    /// Its content in the file, without padding.
    pub content: &'a [u8],
}

/// The sections of a PE file, in the file's order.
///
/// # Errors
/// Headers that are not there or not PE's, and sections that reach beyond the file's end.
pub fn sections(file: &[u8]) -> Result<Vec<Section<'_>>, PeError> {
    let fail = |structure, at, reason| PeError {
        structure,
        at,
        reason,
    };
    let cut = "the file ends before it";
    if !file.starts_with(b"MZ") {
        return Err(fail("MS-DOS stub", 0, "it does not begin with MZ"));
    }
    let coff = number(file, 0x3c, 4).ok_or_else(|| fail("MS-DOS stub", 0, cut))?;
    let header = part(file, coff..coff.saturating_add(COFF_HEADER));
    let header = header.ok_or_else(|| fail("PE header", coff, cut))?;
    if !header.starts_with(b"PE\0\0") {
        return Err(fail("PE header", coff, "its signature is not PE"));
    }
    let count = number(header, 6, 2).unwrap_or(0);
    if count > MAX_SECTIONS {
        return Err(fail("PE header", coff, "more than 96 sections"));
    }
    let optional = number(header, 20, 2).unwrap_or(0);
    let table = coff + COFF_HEADER + optional;
    let mut sections = Vec::new();
    for index in 0..count {
        let at = table + index * SECTION_HEADER;
        let entry = part(file, at..at + SECTION_HEADER);
        let entry = entry.ok_or_else(|| fail("section header", at, cut))?;
        let field = |at| number(entry, at, 4).unwrap_or(0);
        // Padded to the alignment of the file in the one, with zeros for more memory in the other.
        let size = field(8).min(field(16));
        let start = field(20);
        let content = if size == 0 {
            Some(&[][..])
        } else {
            part(file, start..start.saturating_add(size))
        };
        let content = content.ok_or_else(|| fail("section", start, "it ends after the file"))?;
        let name = entry.get(..8).unwrap_or_default();
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(8);
        sections.push(Section {
            name: name.get(..end).unwrap_or_default(),
            content,
        });
    }
    Ok(sections)
}

fn part(file: &[u8], range: Range<usize>) -> Option<&[u8]> {
    file.get(range)
}

/// A little-endian number of up to four bytes.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let bytes = bytes.get(at..at.checked_add(size)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| (number << 8) | usize::from(*byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these sections, each padded to 512 bytes.
    fn pe(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 0x40];
        file[..2].copy_from_slice(b"MZ");
        file[0x3c] = 0x40;
        file.extend(b"PE\0\0\x64\x86");
        file.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
        file.extend([0; 12]);
        file.extend([16, 0, 0, 0]);
        file.extend([0; 16]);
        let mut content = Vec::new();
        let start = (file.len() + sections.len() * SECTION_HEADER).next_multiple_of(512);
        for (name, bytes) in sections {
            let mut header = [0; SECTION_HEADER];
            header[..name.len()].copy_from_slice(name.as_bytes());
            let padded = bytes.len().next_multiple_of(512);
            for (at, value) in [(8, bytes.len()), (16, padded), (20, start + content.len())] {
                header[at..at + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
            }
            file.extend(header);
            content.extend_from_slice(bytes);
            content.resize(content.len().next_multiple_of(512), 0);
        }
        file.resize(start, 0);
        file.extend(content);
        file
    }

    #[test]
    fn sections_are_found_without_their_padding() {
        let file = pe(&[
            (".linux", b"kernel"),
            (".initrd", &[7; 700]),
            (".empty", b""),
        ]);
        let found = sections(&file).unwrap();
        let names: Vec<_> = found.iter().map(|section| section.name).collect();
        assert_eq!(names, [&b".linux"[..], b".initrd", b".empty"]);
        assert_eq!(found[0].content, b"kernel");
        assert_eq!(found[1].content, [7; 700]);
        assert!(found[2].content.is_empty());
    }

    #[test]
    fn what_is_cut_short_is_named_with_its_place() {
        let file = pe(&[(".initrd", &[7; 700])]);
        for end in 0..file.len() {
            match sections(&file[..end]) {
                Ok(found) => assert_eq!(found[0].content.len(), 700, "only padding is cut"),
                Err(error) => assert!(error.at <= file.len(), "{error}"),
            }
        }
        let error = sections(&file[..600]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "section at byte 512: it ends after the file"
        );
        assert!(sections(b"\x7fELF").is_err());
    }
}
