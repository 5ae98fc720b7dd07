use std::io::{self, Read};

use flate2::bufread::GzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;

/// Most memory that xz may use, in KiB; `xz -9` needs 65 MiB.
const XZ_MEMORY: u32 = 256 << 10;
/// Largest block of the LZ4 format that the kernel reads.
const LZ4_BLOCK: usize = 8 << 20;
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// What the bytes at the beginning of `data` are compressed with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compression {
    Gzip,
    Lz4,
    Xz,
    Zstd,
    /// Known to the kernel, and not read here.
    Other(&'static str),
}

impl Compression {
    pub(crate) fn detect(data: &[u8]) -> Option<Self> {
        let known: [(&[u8], Self); 8] = [
            (&[0x1f, 0x8b], Self::Gzip),
            (&LZ4_MAGIC, Self::Lz4),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (b"BZh", Self::Other("bzip2")),
            (&[0x89, b'L', b'Z', b'O', 0], Self::Other("lzo")),
            (&[0x5d, 0, 0], Self::Other("lzma")),
            (&[0x04, 0x22, 0x4d, 0x18], Self::Other("LZ4 frames")),
        ];
        known
            .into_iter()
            .find(|(magic, _)| data.starts_with(magic))
            .map(|(_, compression)| compression)
    }

    /// The name that people know it by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Other(name) => name,
        }
    }

    /// What is compressed in `data`, which is left behind the end of the stream.
    pub(crate) fn decode<'a, 'd>(self, data: &'a mut &'d [u8]) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(GzDecoder::new(data)),
            Self::Lz4 => Box::new(Lz4::new(data)),
            Self::Xz => Box::new(XzReader::new_mem_limit(data, false, XZ_MEMORY)),
            Self::Zstd => {
                let decoder = StreamingDecoder::new(data);
                Box::new(decoder.map_err(|error| io::Error::other(error.to_string()))?)
            }
            Self::Other(name) => return Err(io::Error::other(format!("{name} is not read here"))),
        })
    }
}

/// The format that `lz4 -l` writes: a magic number, then blocks behind their lengths.
struct Lz4<'a, 'd> {
    data: &'a mut &'d [u8],
    block: Vec<u8>,
    /// What of the block was not read yet.
    start: usize,
    end: usize,
}

impl<'a, 'd> Lz4<'a, 'd> {
    fn new(data: &'a mut &'d [u8]) -> Self {
        Self {
            data,
            block: Vec::new(),
            start: 0,
            end: 0,
        }
    }

    /// Reads the next block, unless the stream ends here: with its data, with a length of zero, or
    /// before another archive.
    fn next(&mut self) -> io::Result<()> {
        while let Some((word, rest)) = self.data.split_first_chunk::<4>() {
            if *word == LZ4_MAGIC {
                *self.data = rest;
                continue;
            }
            let length = u32::from_le_bytes(*word) as usize;
            let Some((block, rest)) = rest.split_at_checked(length) else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            if length == 0 {
                return Ok(());
            }
            *self.data = rest;
            // No byte of the input gives more than 255.
            let most = LZ4_BLOCK.min(block.len().saturating_mul(255));
            self.block.resize(most, 0);
            self.end = lz4_flex::block::decompress_into(block, &mut self.block)
                .map_err(|error| io::Error::other(error.to_string()))?;
            self.start = 0;
            return Ok(());
        }
        Ok(())
    }
}

impl Read for Lz4<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            self.next()?;
        }
        let left = self.block.get(self.start..self.end).unwrap_or_default();
        let count = (&mut &*left).read(buffer)?;
        self.start += count;
        Ok(count)
    }
}
