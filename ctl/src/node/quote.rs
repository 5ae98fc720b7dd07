use std::{collections::BTreeMap, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use troth_core::tpm::{
    AttestationKey, BIND_PCR, Digest, Expected, HashAlgorithm, PcrMask, PcrValues, Public, Quote,
};
use troth_ipc::{client::AgentClient, varlink::wire};

use crate::{
    cli::NodeQuoteArgs,
    error::{Error, Exit},
    output::{Output, Tone, clean, named_pcr},
};

/// Random bytes of a nonce that is not given.
const NONCE_LENGTH: usize = 20;

/// `node quote --json`.
#[derive(Serialize)]
struct View {
    nonce_hex: String,
    /// As `inspect quote` reads it.
    quote: String,
    /// Base64 of TPM2B_PUBLIC.
    ak: String,
    /// Hex.
    ak_name: String,
    hash_algorithm: String,
    pcrs: BTreeMap<u8, String>,
}

/// Runs `trothctl node quote`. What the agent answers is checked as a verifier would.
pub(super) async fn run(
    agent: &mut AgentClient,
    address: &Path,
    args: &NodeQuoteArgs,
    out: &Output,
) -> Result<Exit, Error> {
    let nonce = match (&args.nonce, &args.nonce_hex) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(bytes)) => bytes.0.clone(),
        (None, None) => rand::random::<[u8; NONCE_LENGTH]>().to_vec(),
    };
    let wanted: Vec<u32> = args.pcrs.iter().map(|pcr| u32::from(*pcr)).collect();
    let wanted = Some(wanted.as_slice()).filter(|wanted| !wanted.is_empty());
    let answer = agent.quote(&BASE64_STANDARD.encode(&nonce), wanted).await?;
    let view = check(&nonce, args, &answer).map_err(|reason| Error::QuoteInvalid {
        path: address.to_owned(),
        reason,
    })?;
    out.result(&view, || view.describe(out))?;
    Ok(Exit::Success)
}

fn check(nonce: &[u8], args: &NodeQuoteArgs, answer: &wire::Quote) -> Result<View, String> {
    let decode = |name, text| {
        let decoded = BASE64_STANDARD.decode(text);
        decoded.map_err(|error| format!("{name}: {error}"))
    };
    let hash = HashAlgorithm::from_name(&answer.hash_algorithm)
        .ok_or_else(|| format!("the bank {} is not known", answer.hash_algorithm))?;
    let mut values = PcrValues::new(hash);
    for pcr in &answer.pcrs {
        let value = Digest::from_hex(&pcr.value);
        let index = u8::try_from(pcr.index).ok();
        let (Some(value), Some(index)) = (value, index) else {
            return Err(format!("PCR {}: it has no value", pcr.index));
        };
        values.set(index, value);
    }
    let mut mask = PcrMask::default();
    match args.pcrs.is_empty() {
        true => mask = values.mask(),
        // The agent binds its key, whatever was asked.
        false => {
            let pcrs = args.pcrs.iter().chain(&[BIND_PCR]);
            pcrs.for_each(|pcr| mask = mask.with(*pcr));
        }
    }
    let message = decode("message", &answer.message)?;
    let signature = decode("signature", &answer.signature)?;
    let public = Public::from_tpm2b(&decode("attestationKey", &answer.attestation_key)?)
        .map_err(|e| e.to_string())?;
    let ak = AttestationKey::new(&public).map_err(|error| error.to_string())?;
    let text = Quote::encode(&message, &signature, &values);
    let quote = Quote::from_parts(&message, &signature, values.clone());
    let expected = Expected { nonce, hash, mask };
    quote
        .and_then(|quote| quote.verify(&ak, &expected))
        .map_err(|error| error.to_string())?;
    Ok(View {
        nonce_hex: hex::encode(nonce),
        quote: text,
        ak: answer.attestation_key.clone(),
        ak_name: ak.name().to_string(),
        hash_algorithm: answer.hash_algorithm.clone(),
        pcrs: values
            .iter()
            .map(|(pcr, value)| (pcr, value.to_string()))
            .collect(),
    })
}

impl View {
    fn describe(&self, out: &Output) -> String {
        let mut text = out.fields(&[
            (
                "Quote",
                out.paint(
                    Tone::Good,
                    "signed by the AK, over this nonce and these PCRs",
                ),
            ),
            ("Nonce", self.nonce_hex.clone()),
            ("AK name", self.ak_name.clone()),
            ("PCR bank", clean(&self.hash_algorithm)),
        ]);
        let rows = self.pcrs.iter().map(|(pcr, value)| {
            vec![
                (Tone::Plain, named_pcr(*pcr)),
                (Tone::Plain, out.digest(value)),
            ]
        });
        text.push('\n');
        text.push_str(&out.table(&["PCR", "VALUE"], rows.collect()));
        text
    }
}
