use std::sync::{Arc, OnceLock};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use super::boot::{self, Boot};
use crate::finding::Findings;
use crate::policy::BootPolicy;
use crate::tpm::VerifiedQuote;
use crate::wire::QuoteResponse;

/// PCRs that the judgement of a boot looks at: 0 to 9 and 11 to 15.
const BOOT_PCRS: u32 = 0xfbff;

/// The boot that a node was judged good for last, so that the same evidence under the same policy
/// is not decoded, parsed, replayed and judged with every answer.
///
/// A memory, no knowledge: it is not serialised, and a state without it gives the same verdict.
///
/// What is kept is a MAC over everything that the judgement looks at: the logs as they were
/// received, the bank, and the quoted values of the boot's PCRs, which are of this answer's
/// verified quote; and the policy itself. The MAC is GMAC under a random key of this process that
/// nobody sees, nor any MAC by it. So it is a universal hash: whoever chooses the bytes of a
/// second log finds one with the first one's MAC with a probability of its length in 16-byte
/// blocks over 2^128, whatever they know and however often they try. A plain hash would cost five
/// times as much, one without a secret key could be collided on purpose.
#[derive(Clone, Debug, Default)]
pub struct KnownBoot(Option<Arc<Known>>);

#[derive(Debug)]
struct Known {
    policy: BootPolicy,
    mac: Mac,
    boot: Arc<Boot>,
}

/// A MAC over the evidence of one boot.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Mac([u8; 16]);

impl KnownBoot {
    /// Is it a boot that was judged good, and of other evidence than `before`?
    pub fn is_new_since(&self, before: &Self) -> bool {
        let before = before.0.as_ref().map(|known| known.mac);
        let boot = self.0.as_ref();
        boot.is_some_and(|known| Some(known.mac) != before)
    }

    /// The boot log by the boot policy; what is judged good is kept here for the next answer.
    pub(super) fn check(
        &mut self,
        evidence: &QuoteResponse,
        policy: &BootPolicy,
        quote: &VerifiedQuote,
        findings: &mut Findings,
    ) -> Arc<Boot> {
        let mac = match policy {
            BootPolicy::None => None,
            _ => Mac::of(evidence, quote),
        };
        if let (Some(known), Some(mac)) = (&self.0, mac)
            && known.mac == mac
            && known.policy == *policy
        {
            return Arc::clone(&known.boot);
        }
        let before = findings.total();
        let boot = Arc::new(boot::check(evidence, policy, quote, findings));
        let good = findings.total() == before;
        self.0 = mac.filter(|_| good).map(|mac| {
            Arc::new(Known {
                policy: policy.clone(),
                mac,
                boot: Arc::clone(&boot),
            })
        });
        boot
    }
}

/// Two states that differ in this alone lead to the same verdicts.
impl PartialEq for KnownBoot {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Mac {
    /// Over what the judgement of a boot looks at. `None`: the system gave no key.
    fn of(evidence: &QuoteResponse, quote: &VerifiedQuote) -> Option<Self> {
        // All members are named, so that a new one cannot be forgotten here: the judgement of a
        // boot must look at none that is not below.
        let QuoteResponse {
            mb_measurement_list,
            userspace_measurement_list,
            quote: _,
            hash_alg: _,
            enc_alg: _,
            sign_alg: _,
            pubkey: _,
            ima_measurement_list: _,
            ima_measurement_list_entry: _,
            boottime: _,
        } = evidence;
        let pcrs = quote.pcrs();
        let mut rest = Vec::with_capacity(1024);
        // Each part has its length before it or a size of its own: no two inputs are one text.
        for log in [mb_measurement_list, userspace_measurement_list] {
            // One that is missing is not an empty one.
            rest.push(u8::from(log.is_some()));
            let log = log.as_deref().unwrap_or_default();
            let Self(of_log) = Self::over(0, log.as_bytes())?;
            rest.extend_from_slice(&log.len().to_le_bytes());
            rest.extend_from_slice(&of_log);
        }
        rest.extend_from_slice(&pcrs.bank().id().to_le_bytes());
        rest.extend_from_slice(&(pcrs.mask().bits() & BOOT_PCRS).to_le_bytes());
        for (_, value) in pcrs.iter().filter(|(pcr, _)| BOOT_PCRS >> pcr & 1 == 1) {
            rest.extend_from_slice(value.as_bytes());
        }
        Self::over(1, &rest)
    }

    /// GMAC; `use_` tells the uses of the key apart.
    fn over(use_: u8, bytes: &[u8]) -> Option<Self> {
        static KEY: OnceLock<Option<LessSafeKey>> = OnceLock::new();
        let key = KEY.get_or_init(|| {
            let mut key = [0; 16];
            aws_lc_rs::rand::fill(&mut key).ok()?;
            UnboundKey::new(&AES_128_GCM, &key)
                .ok()
                .map(LessSafeKey::new)
        });
        // The nonce may be one and the same, as MACs are compared and never shown.
        let mut nonce = [0; 12];
        nonce[0] = use_;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let key = key.as_ref()?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(bytes), &mut []);
        tag.ok()?.as_ref().try_into().ok().map(Self)
    }
}
