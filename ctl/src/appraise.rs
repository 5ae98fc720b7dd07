/// Which policies a bundle is judged by.
mod policies;
/// What is shown.
mod report;
/// What else is judged by: the boot engine, keys, violations, algorithms.
mod rules;

use std::path::{Path, PathBuf};

use base64::{Engine, prelude::BASE64_STANDARD};
use troth_core::{
    appraise::{ImaRules, Policies, Verdict},
    bundle::{Bundle, Chain, Outcome},
    tpm::{AttestationKey, Name, Public},
    wire::BootQuirk,
};

use self::{
    policies::Given,
    report::{Appraised, Report},
    rules::Rules,
};
use crate::{
    bundle,
    cli::AppraiseArgs,
    error::{Error, Exit},
    output::Output,
    policy::{read_file, verification_keys},
};

/// Runs `trothctl appraise`.
pub(crate) fn run(args: &AppraiseArgs, out: &Output) -> Result<Exit, Error> {
    let given = Given::read(args)?;
    let ak = args.ak.as_deref().map(Ak::read).transpose()?;
    let ima_keys = verification_keys(&args.verification_key)?;
    let files = in_order(bundle::files(&args.bundles)?)?;
    if files.len() > 1 && args.nonce.is_some() {
        return Err(Error::Usage {
            option: "--nonce",
            reason: "each bundle was asked for with its own; name one bundle".to_owned(),
        });
    }
    let mut chain = Chain::default();
    let mut report = Report::new(ak.is_some(), args.nonce.is_some());
    for path in files {
        let bytes = bundle::read(&path)?;
        let bundle = bundle::parse(&path, &bytes)?;
        let key = key(&path, &bundle, ak.as_ref())?;
        let nonce = args.nonce.as_deref().unwrap_or(&bundle.head.nonce);
        let rules = Rules::choose(
            args,
            ima_keys.as_deref(),
            bundle.head.criteria.as_ref(),
            &key,
        );
        let rules = rules.map_err(|error| Error::Malformed {
            path: path.clone(),
            reason: format!("ima_keys: {error}"),
        })?;
        let chosen = given.choose(&path, &bundle, rules.engine)?;
        let policies = Policies {
            tpm: &chosen.tpm,
            runtime: chosen.runtime.as_deref(),
            boot: &chosen.boot,
            accept: &rules.accept,
            ima: ImaRules {
                tomtou: rules.tomtou,
                keys: rules.keys.as_ref(),
            },
        };
        let link = chain.link(&bundle.head.state);
        let appraisal = bundle.appraise(&key, nonce, &policies);
        chain.push(&bundle.head, &appraisal);
        // The word for people; what an exit status rests on is the verdict itself.
        let trusted = matches!(appraisal.verdict, Verdict::Trusted(_));
        let outcome = Outcome::new(&appraisal);
        let quirks = appraisal.boot_quirks.iter();
        let recorded = bundle.recorded();
        let recorded = recorded.map_err(|source| bundle::malformed(&path, source))?;
        report.push(Appraised {
            // What an older version did not write is as it was.
            same_as_recorded: recorded.as_ref().map(|recorded| *recorded == outcome),
            recorded,
            ak_name: hex::encode(key.name().as_bytes()),
            file: path,
            head: bundle.head,
            sources: chosen.sources,
            rules: rules.told,
            link,
            trusted,
            outcome,
            boot_quirks: quirks
                .map(|(pcr, quirk)| BootQuirk::new(*pcr, *quirk))
                .collect(),
        });
    }
    report.show(out)?;
    Ok(report.exit())
}

/// Files of one node and one AK, the oldest first: as their verifier counted them, else by time.
fn in_order(files: Vec<PathBuf>) -> Result<Vec<PathBuf>, Error> {
    let [_, _, ..] = files[..] else {
        return Ok(files);
    };
    let mut heads = Vec::new();
    for path in files {
        if path == Path::new("-") {
            return Err(Error::Usage {
                option: "-",
                reason: "standard input is one bundle, and read once".to_owned(),
            });
        }
        let bytes = bundle::read(&path)?;
        let head = bundle::parse(&path, &bytes)?.head;
        heads.push((path, head));
    }
    if let Some((first, rest)) = heads.split_first()
        && let Some(other) = rest
            .iter()
            .find(|(_, head)| head.node != first.1.node || head.ak != first.1.ak)
    {
        return Err(Error::BundlesOfTwo {
            one: first.0.clone(),
            other: other.0.clone(),
        });
    }
    let counted = heads.iter().all(|(_, head)| head.sequence.is_some());
    heads.sort_by_key(|(_, head)| match counted {
        true => (head.sequence, head.time_ms),
        false => (None, head.time_ms),
    });
    Ok(heads.into_iter().map(|(path, _)| path).collect())
}

/// The AK that the operator knows the node by.
enum Ak {
    /// What the TPM calls it: a hash of all that it is.
    Name(Name),
    /// The key alone, PEM.
    Pem(String),
}

impl Ak {
    /// A name, or a file with PEM, or with TPM2B_PUBLIC, binary or base64.
    fn read(argument: &str) -> Result<Self, Error> {
        let name = hex::decode(argument).ok();
        if let Some(name) = name.and_then(|name| Name::from_bytes(&name)) {
            return Ok(Self::Name(name));
        }
        let path = Path::new(argument);
        let bytes = read_file(path)?;
        let text = std::str::from_utf8(&bytes).map(str::trim);
        if let Ok(pem) = text
            && pem.starts_with("-----BEGIN PUBLIC KEY-----")
        {
            return Ok(Self::Pem(pem.to_owned()));
        }
        let decoded = text.ok().and_then(|text| BASE64_STANDARD.decode(text).ok());
        let public = Public::from_tpm2b(decoded.as_deref().unwrap_or(&bytes));
        let public = public.map_err(|source| Error::Structure {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::Name(public.name()))
    }
}

/// The key that the quote is checked with: the bundle's, which must be the one that was given.
fn key(path: &Path, bundle: &Bundle<'_>, given: Option<&Ak>) -> Result<AttestationKey, Error> {
    let unusable = |source| bundle::malformed(path, source);
    let key = bundle.attestation_key().map_err(unusable)?;
    let the_given = match given {
        None => true,
        Some(Ak::Name(name)) => name == key.name(),
        Some(Ak::Pem(pem)) => {
            let own = Public::from_tpm2b(&bundle.head.ak).map(|public| public.to_spki_pem());
            own.is_ok_and(|own| same_pem(&own, pem))
        }
    };
    if the_given {
        Ok(key)
    } else {
        Err(Error::ForeignAk {
            path: path.to_owned(),
            name: hex::encode(key.name().as_bytes()),
        })
    }
}

/// The same key, however its lines are broken.
fn same_pem(one: &str, other: &str) -> bool {
    let text = |pem: &str| pem.split_ascii_whitespace().collect::<String>();
    text(one) == text(other)
}
