use crate::ima::{DeviceState, DeviceStates, DmDevice, DmEvent, DmNames, DmTarget, Entry};
use crate::policy::{DmAllowed, DmPolicy, DmRule};
use crate::tpm::{Digest, HashAlgorithm};

/// What the device-mapper policy does not allow.
#[derive(Debug)]
pub(super) struct Fault {
    /// The last segments of the finding's id, behind `ima.validation.dm.`.
    pub(super) id: String,
    pub(super) expected: Vec<String>,
    pub(super) got: Option<String>,
    pub(super) explanation: String,
}

impl Fault {
    fn new(id: &str, explanation: String) -> Self {
        Self {
            id: id.to_owned(),
            expected: Vec::new(),
            got: None,
            explanation,
        }
    }

    fn between(mut self, expected: impl ToString, got: impl ToString) -> Self {
        self.expected = vec![expected.to_string()];
        self.got = Some(got.to_string());
        self
    }
}

/// The devices of a node, judged by the events of the list, one after the other.
pub(super) struct Devices<'a> {
    policy: &'a DmPolicy,
    pub(super) states: DeviceStates,
}

impl<'a> Devices<'a> {
    /// Goes on from `states`. `None`: these were judged by another policy, or not at all, so that
    /// the list must be read again from its beginning.
    pub(super) fn resume(policy: &'a DmPolicy, states: Option<&DeviceStates>) -> Option<Self> {
        let states = states.filter(|states| states.policy == *policy.content_digest())?;
        Some(Self {
            policy,
            states: states.clone(),
        })
    }

    /// Before the first entry.
    pub(super) fn new(policy: &'a DmPolicy) -> Self {
        Self {
            policy,
            states: DeviceStates::new(*policy.content_digest()),
        }
    }

    /// An event, whose digest is known to be good. A fault leaves all as it was: the next check
    /// begins with the event again.
    pub(super) fn event(&mut self, entry: &Entry<'_>) -> Result<(), Fault> {
        let buffer = entry.buffer();
        let event = DmEvent::parse(entry.name, &buffer).map_err(|reason| {
            let name = entry.name;
            Fault::new("parsing_failed", format!("The {name} event {reason}."))
        })?;
        match event {
            DmEvent::TableLoad { device, targets } => {
                // The kernel's own hash of a table, whatever IMA's is.
                let hash = HashAlgorithm::Sha256.digest(&[&buffer]);
                self.load(&device, &targets, hash)
            }
            DmEvent::DeviceResume { names, active } => self.resumed(&names, active),
            DmEvent::DeviceRemove { names } => self.removed(&names),
            DmEvent::TableClear { names, inactive } => self.cleared(&names, inactive),
            DmEvent::DeviceRename { old, new } => self.renamed(old.as_ref(), &new),
            DmEvent::TargetUpdate { names, target } => self.updated(&names, &target),
        }
    }

    fn load(&mut self, device: &DmDevice, targets: &[DmTarget], hash: Digest) -> Result<(), Fault> {
        let key = self.policy.key(&device.names);
        let fault = |reason: &str, text: &str| {
            let id = format!("dm_table_load.{reason}");
            Fault::new(&id, format!("The device {key} {text}."))
        };
        let before = self.states.get_mut(key);
        let again = before.is_some_and(|state| {
            let loaded = state.active.is_some() || state.inactive.is_some();
            let rule = self.policy.rules().get(state.rule);
            loaded && !rule.is_some_and(|(_, rule)| rule.allow_multiple_loads)
        });
        if again {
            let text = "was given a table once more";
            return Err(fault("multiple_table_loads", text));
        }
        let Some((place, rule)) = self.policy.rule_for(&device.names) else {
            let text = "is one that no rule of the policy is about";
            return Err(fault("no_matching_policy", text));
        };
        for (name, allowed, value) in [
            ("name", &rule.name, device.names.name.clone()),
            ("uuid", &rule.uuid, device.names.uuid.clone()),
            ("major", &rule.major, device.major.to_string()),
            ("minor", &rule.minor, device.minor.to_string()),
            (
                "minor_count",
                &rule.minor_count,
                device.minor_count.to_string(),
            ),
        ] {
            if !allowed.allows(&value) {
                let text = format!("has another {name} than the policy allows");
                return Err(fault("invalid_entry", &text).between(allowed, value));
            }
        }
        let count = targets.len();
        if usize::try_from(device.num_targets) != Ok(count) || rule.targets.len() != count {
            let text = "has another number of targets than the policy allows";
            let fault = fault("num_targets_mismatch", text);
            let got = format!("{count} of {}", device.num_targets);
            return Err(fault.between(rule.targets.len(), got));
        }
        for (target, allowed) in targets.iter().zip(&rule.targets) {
            judge_target("dm_table_load", key, target, allowed)?;
        }
        let before = self.states.get_mut(key).and_then(|state| state.active);
        let kept = self.states.insert(DeviceState {
            key: key.to_owned(),
            rule: place,
            active: before,
            inactive: Some(hash),
            valid: !rule.resume_required,
        });
        if kept {
            Ok(())
        } else {
            let text = "is one more than the verifier keeps of a node";
            Err(fault("too_many_devices", text))
        }
    }

    fn resumed(&mut self, names: &DmNames, active: Option<Digest>) -> Result<(), Fault> {
        const EVENT: &str = "dm_device_resume";
        let (key, _, state) = self.known(EVENT, "resume", names)?;
        let Some(expected) = state.inactive else {
            let text = format!("The device {key} was resumed without a new table.");
            return Err(Fault::new(&format!("{EVENT}.already_active"), text));
        };
        if active != Some(expected) {
            let text = format!("The device {key} was resumed with another table than was loaded.");
            let fault = Fault::new(&format!("{EVENT}.active_table_mismatch"), text);
            let got = active.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
            return Err(fault.between(expected, got));
        }
        state.active = state.inactive.take();
        state.valid = true;
        Ok(())
    }

    fn removed(&mut self, names: &DmNames) -> Result<(), Fault> {
        const EVENT: &str = "dm_device_remove";
        let (key, rule, _) = self.known(EVENT, "remove", names)?;
        if !rule.allow_removal {
            let text = format!("The device {key} was removed.");
            return Err(Fault::new(&format!("{EVENT}.device_removed"), text));
        }
        self.states.remove(key);
        Ok(())
    }

    fn cleared(&mut self, names: &DmNames, inactive: Option<Digest>) -> Result<(), Fault> {
        const EVENT: &str = "dm_table_clear";
        let (key, rule, state) = self.known(EVENT, "clear", names)?;
        if !rule.allow_clear {
            let text = format!("The inactive table of the device {key} was cleared.");
            return Err(Fault::new(&format!("{EVENT}.table_cleared"), text));
        }
        let Some(hash) = inactive else {
            return Ok(());
        };
        if state.inactive != Some(hash) {
            let text = format!("The device {key} was cleared of a table that was not loaded.");
            let fault = Fault::new(&format!("{EVENT}.inactive_table_mismatch"), text);
            let known = state.inactive;
            let expected = known.map_or_else(|| "none".to_owned(), |hash| hash.to_string());
            return Err(fault.between(expected, hash));
        }
        state.inactive = None;
        // Without a new table it is what it was before that one was loaded.
        state.valid = state.active.is_some();
        Ok(())
    }

    fn renamed(&mut self, old: Option<&DmNames>, new: &DmNames) -> Result<(), Fault> {
        const EVENT: &str = "dm_device_rename";
        let Some(old) = old else {
            let text = format!("A device without a table was renamed to {}.", new.name);
            let id = format!("{EVENT}.rename_before_table_load");
            return Err(Fault::new(&id, text));
        };
        let (key, rule, _) = self.known(EVENT, "rename", old)?;
        for (reason, allowed, before, after) in [
            ("new_name_invalid", &rule.valid_name, &old.name, &new.name),
            ("new_uuid_invalid", &rule.valid_uuid, &old.uuid, &new.uuid),
        ] {
            if before != after && !allowed.allows(after) {
                let text = format!("The device {key} was renamed to what the policy forbids.");
                let fault = Fault::new(&format!("{EVENT}.{reason}"), text);
                return Err(fault.between(allowed, after));
            }
        }
        let now = self.policy.key(new);
        if let Some(state) = self.states.remove(key) {
            self.states.insert(DeviceState {
                key: now.to_owned(),
                ..state
            });
        }
        Ok(())
    }

    fn updated(&mut self, names: &DmNames, target: &DmTarget) -> Result<(), Fault> {
        const EVENT: &str = "dm_target_update";
        let (key, rule, _) = self.known(EVENT, "update", names)?;
        let place = usize::try_from(target.index).ok();
        let Some(allowed) = place.and_then(|place| rule.targets.get(place)) else {
            let text = format!("The device {key} has a target that the policy does not have.");
            let fault = Fault::new(&format!("{EVENT}.num_targets_mismatch"), text);
            return Err(fault.between(rule.targets.len(), target.index));
        };
        judge_target(EVENT, key, target, allowed)
    }

    /// A device whose table was seen being loaded, and its rule.
    fn known<'n>(
        &mut self,
        event: &str,
        verb: &str,
        names: &'n DmNames,
    ) -> Result<(&'n str, &'a DmRule, &mut DeviceState), Fault> {
        let (key, rules) = (self.policy.key(names), self.policy.rules());
        let state = self.states.get_mut(key);
        let found = state.and_then(|state| Some((key, &rules.get(state.rule)?.1, state)));
        found.ok_or_else(|| {
            let text = format!("An event of the device {key} came before a table was loaded.");
            Fault::new(&format!("{event}.{verb}_before_table_load"), text)
        })
    }

    /// What is wrong once all events are judged: devices not as their rule says, and required
    /// rules without a device.
    pub(super) fn lacks(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for state in self.states.iter().filter(|state| !state.valid) {
            let text = format!(
                "The device {} is not in use as its rule says: no resume followed its table.",
                state.key
            );
            faults.push(Fault::new("device_invalid_state", text));
        }
        for (place, (name, rule)) in self.policy.rules().iter().enumerate() {
            let mut states = self.states.iter();
            if rule.required && !states.any(|state| state.valid && state.rule == place) {
                let text = format!("The policy requires a device by the rule {name}; none is.");
                faults.push(Fault::new("required_policy_not_in_use", text));
            }
        }
        faults
    }
}

/// The listed attributes of a target.
fn judge_target(
    event: &str,
    key: &str,
    target: &DmTarget,
    attributes: &[(String, DmAllowed)],
) -> Result<(), Fault> {
    for (name, allowed) in attributes {
        let value = target.attribute(name);
        if matches!(allowed, DmAllowed::Anything)
            || value.is_some_and(|value| allowed.allows(value))
        {
            continue;
        }
        let index = target.index;
        return Err(match value {
            Some(value) => {
                let text = format!(
                    "Target {index} of the device {key} has another {name} than the policy allows."
                );
                Fault::new(&format!("{event}.target_data_mismatch"), text).between(allowed, value)
            }
            None => {
                let text = format!("Target {index} of the device {key} has no {name}.");
                let mut fault = Fault::new(&format!("{event}.target_attribute_not_found"), text);
                fault.expected = vec![allowed.to_string()];
                fault
            }
        });
    }
    Ok(())
}
