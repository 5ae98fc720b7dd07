use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::rand;
use bytes::Bytes;
use http_body_util::BodyExt;
use rustix::fs::{SealFlags, fcntl_add_seals};
use troth_core::{
    appraise::NodeState,
    bundle::{BundleError, Head},
    tpm::PcrMask,
};
use troth_ipc::agent::OperationError;

use super::{Host, LOCAL, no_evidence};
use crate::{
    evidence::{Answer, Request},
    http::ApiVersion,
    memory_file,
};

/// Every PCR: whoever appraises the bundle brings the policy, which nobody knows here.
const ALL_PCRS: u32 = (1 << 24) - 1;

/// Bytes of a random nonce, as many as SHA-256 has. Its text has twice as many characters.
const RANDOM_NONCE: usize = 32;

/// The newest: a bundle has no verifier with whom to agree.
const VERSION: ApiVersion = ApiVersion::ALL[ApiVersion::ALL.len() - 1];

/// An evidence bundle of this instant, sealed and at its beginning. The answer in it is the one that
/// a verifier would get, and goes through memory in pieces as that does.
pub(super) async fn collect(host: &Host, nonce: String) -> Result<OwnedFd, OperationError> {
    let nonce = match nonce.is_empty() {
        false => nonce,
        true => random_nonce()?,
    };
    let mask = PcrMask::from_bits(ALL_PCRS).map_err(|error| failed(&error))?;
    let request = Request {
        nonce: nonce.clone().into_bytes(),
        mask,
        with_key: true,
        logs_from: Some(0),
        with_userspace_log: true,
    };
    let answer = host
        .collector
        .answer(request, VERSION, LOCAL.to_owned())
        .await
        .map_err(|error| no_evidence(&error))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_millis());
    let head = Head {
        maker: concat!("troth-agent ", env!("CARGO_PKG_VERSION")).to_owned(),
        node: host.id.clone(),
        time_ms: u64::try_from(now).unwrap_or(u64::MAX),
        sequence: None,
        nonce,
        mask,
        ima_entry: 0,
        ak: host.ak.to_tpm2b(),
        state: NodeState::default(),
        criteria: None,
    };
    let mut file = Bundle::create(&head)?;
    match answer {
        Answer::Whole(text) => file.append(&text)?,
        Answer::Streamed(mut pieces) => {
            while let Some(piece) = pieces.frame().await {
                let piece = piece.map(|frame| frame.into_data().unwrap_or_default());
                file.append(&piece.map_err(|error| failed(&error))?)?;
            }
        }
    }
    file.seal(&head)
}

/// The file while it is written.
struct Bundle {
    file: File,
    answer: usize,
}

impl Bundle {
    /// With room for the first line.
    fn create(head: &Head) -> Result<Self, OperationError> {
        let file = memory_file::create("troth-evidence");
        let mut file = file.map_err(|error| failed(&error))?;
        file.write_all(&first_line(head, 0)?)
            .map_err(|error| failed(&error))?;
        Ok(Self { file, answer: 0 })
    }

    fn append(&mut self, piece: &Bytes) -> Result<(), OperationError> {
        self.answer += piece.len();
        self.file.write_all(piece).map_err(|error| failed(&error))
    }

    /// Fills in the first line; nobody can change the file from then on.
    fn seal(mut self, head: &Head) -> Result<OwnedFd, OperationError> {
        let line = first_line(head, self.answer)?;
        let finish = |file: &mut File| -> io::Result<()> {
            file.write_all(b"\n")?;
            file.write_all_at(&line, 0)?;
            file.seek(SeekFrom::Start(0))?;
            let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
            fcntl_add_seals(&*file, seals)?;
            Ok(())
        };
        finish(&mut self.file).map_err(|error| failed(&error))?;
        Ok(self.file.into())
    }
}

fn first_line(head: &Head, answer: usize) -> Result<Vec<u8>, OperationError> {
    head.line_of_answer(answer)
        .map_err(|error: BundleError| failed(&error))
}

fn random_nonce() -> Result<String, OperationError> {
    let mut bytes = [0; RANDOM_NONCE];
    rand::fill(&mut bytes).map_err(|_| OperationError::Host("no random numbers".into()))?;
    Ok(hex::encode(bytes))
}

fn failed(error: &dyn std::error::Error) -> OperationError {
    OperationError::Host(format!("no evidence bundle: {error}"))
}
