use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use hyper::StatusCode;

use crate::rest::Refusal;

/// A burst is this many seconds' worth of requests.
const BURST: f64 = 10.0;
/// Sources remembered at a time; those with a full bucket are forgotten first.
const MAX_SOURCES: usize = 16_384;

/// A token bucket per source address (per /64 for IPv6, which hosts choose freely).
#[derive(Debug)]
pub(crate) struct SourceLimit {
    per_second: f64,
    sources: Mutex<HashMap<IpAddr, Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl SourceLimit {
    /// `per_second` 0: no limit.
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            per_second: f64::from(per_second),
            sources: Mutex::new(HashMap::new()),
        }
    }

    /// Takes one request's token.
    pub(crate) fn take(&self, source: IpAddr) -> Result<(), Refusal> {
        self.take_at(source, Instant::now())
    }

    fn take_at(&self, source: IpAddr, now: Instant) -> Result<(), Refusal> {
        if self.per_second == 0.0 {
            return Ok(());
        }
        let full = self.per_second * BURST;
        let refill = |bucket: &Bucket| {
            let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * self.per_second;
            (bucket.tokens + gained).min(full)
        };
        // A panic cannot leave a bucket half-changed, so a poisoned lock is still good.
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let key = network(source);
        if sources.len() >= MAX_SOURCES && !sources.contains_key(&key) {
            sources.retain(|_, bucket| refill(bucket) < full);
            if sources.len() >= MAX_SOURCES {
                return Err(refusal());
            }
        }
        let bucket = sources.entry(key).or_insert(Bucket {
            tokens: full,
            at: now,
        });
        bucket.tokens = refill(bucket);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(refusal());
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

fn refusal() -> Refusal {
    Refusal::new(
        StatusCode::TOO_MANY_REQUESTS,
        "too many requests from this address",
    )
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_then_rate_for_one_source_and_nothing_for_others() {
        let limit = SourceLimit::new(2);
        let start = Instant::now();
        let noisy: IpAddr = "10.0.0.1".parse().unwrap();
        for _ in 0..20 {
            limit.take_at(noisy, start).unwrap();
        }
        let refused = limit.take_at(noisy, start).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        limit.take_at("10.0.0.2".parse().unwrap(), start).unwrap();
        let later = start + Duration::from_millis(500);
        limit.take_at(noisy, later).unwrap();
        limit.take_at(noisy, later).unwrap_err();
    }

    #[test]
    fn one_ipv6_network_is_one_source() {
        let limit = SourceLimit::new(1);
        let now = Instant::now();
        for host in 0..10 {
            limit
                .take_at(format!("2001:db8::{host}").parse().unwrap(), now)
                .unwrap();
        }
        limit
            .take_at("2001:db8::ffff".parse().unwrap(), now)
            .unwrap_err();
        limit
            .take_at("2001:db8:0:1::1".parse().unwrap(), now)
            .unwrap();
    }
}
