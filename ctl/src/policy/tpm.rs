use std::path::{Path, PathBuf};

use troth_core::{
    policy::TpmPolicy,
    tpm::{BIND_PCR, Digest, HashAlgorithm, PcrMask, PcrValues, parse_pcrread},
};

use super::{read_text, write_output};
use crate::{
    cli::{CreateTpmArgs, QuoteArgs},
    error::{Error, Exit},
    inspect,
    output::Output,
};

/// Where the kernel shows the PCRs of the TPM.
const SYSFS: &str = "/sys/class/tpm/tpm0";

/// Runs `trothctl policy create tpm`.
pub(super) fn create(args: &CreateTpmArgs, out: &Output) -> Result<Exit, Error> {
    let asked = args.pcr.or(args.mask);
    let (place, values) = match (&args.quote, &args.pcrread) {
        (Some(path), _) => (path.clone(), of_quote(path, args, out)?),
        (None, Some(path)) => (path.clone(), of_pcrread(path, args.bank)?),
        (None, None) => {
            let directory = args.sysfs.as_deref().unwrap_or_else(|| Path::new(SYSFS));
            let directory = directory.join(format!("pcr-{}", args.bank));
            // clap demands a list where there is no quote.
            let values = of_sysfs(&directory, args.bank, asked.unwrap_or_default())?;
            (directory, values)
        }
    };
    let mask = asked.unwrap_or_else(|| values.mask());
    for pcr in [10, BIND_PCR] {
        if asked.is_some_and(|asked| asked.contains(pcr)) {
            out.note(&format!("PCR {pcr} has no fixed value and is left out"));
        }
    }
    let policy = TpmPolicy::from_values(&values, mask).map_err(|source| Error::Policy {
        what: format!("TPM policy from {}", place.display()),
        source,
    })?;
    if policy.allowed().next().is_none() {
        let left_out = "PCR 10 (the IMA list) and 16 (the agent's key) have no fixed value";
        return Err(match asked {
            Some(_) => Error::Usage {
                option: "--pcr or --mask",
                reason: format!("it names no PCR for a policy: {left_out}"),
            },
            None => Error::Create {
                path: place,
                reason: format!("it has values of no other PCR: {left_out}"),
            },
        });
    }
    write_output(args.output.as_deref(), &(policy.to_json() + "\n"), out)?;
    Ok(Exit::Success)
}

fn of_quote(path: &Path, args: &CreateTpmArgs, out: &Output) -> Result<PcrValues, Error> {
    let values = inspect::quoted_values(&QuoteArgs {
        file: path.to_owned(),
        ak: args.ak.clone(),
        nonce: None,
        nonce_hex: None,
    })?;
    if args.ak.is_none() {
        out.note("nobody has checked who made this quote: --ak names the key of its TPM");
    }
    Ok(values)
}

fn of_pcrread(path: &Path, bank: HashAlgorithm) -> Result<PcrValues, Error> {
    let malformed = |reason: String| Error::Malformed {
        path: path.to_owned(),
        reason,
    };
    let banks = parse_pcrread(&read_text(path)?).map_err(|error| malformed(error.to_string()))?;
    banks
        .into_iter()
        .find(|values| values.bank() == bank)
        .ok_or_else(|| malformed(format!("there is no bank {bank}")))
}

fn of_sysfs(directory: &Path, bank: HashAlgorithm, mask: PcrMask) -> Result<PcrValues, Error> {
    let mut values = PcrValues::new(bank);
    for pcr in mask.iter() {
        let path: PathBuf = directory.join(pcr.to_string());
        let text = read_text(&path)?;
        let value = Digest::from_hex(text.trim())
            .filter(|value| value.as_bytes().len() == bank.size())
            .ok_or_else(|| Error::Malformed {
                path,
                reason: format!("not a value of the bank {bank}, in hexadecimal"),
            })?;
        values.set(pcr, value);
    }
    Ok(values)
}
