use serde::{Deserialize, Serialize};

use crate::tpm::Digest;

/// Most devices that are kept of one node.
const MAX_DEVICES: usize = 64;

/// Devices of the device mapper, as the entries judged so far left them under one policy.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct DeviceStates {
    /// SHA-256 of the device-mapper policy that they were judged by.
    pub(crate) policy: Digest,
    devices: Vec<DeviceState>,
}

/// A device.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct DeviceState {
    /// Name or UUID, whichever the policy goes by.
    pub(crate) key: String,
    /// Place of its rule in the policy.
    pub(crate) rule: usize,
    /// Hash of the active and of the inactive table.
    pub(crate) active: Option<Digest>,
    pub(crate) inactive: Option<Digest>,
    /// Is it as its rule says?
    pub(crate) valid: bool,
}

impl DeviceStates {
    /// No devices yet.
    pub(crate) fn new(policy: Digest) -> Self {
        Self {
            policy,
            devices: Vec::new(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &DeviceState> {
        self.devices.iter()
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut DeviceState> {
        self.devices.iter_mut().find(|device| device.key == key)
    }

    /// Forgets a device.
    pub(crate) fn remove(&mut self, key: &str) -> Option<DeviceState> {
        let place = self.devices.iter().position(|device| device.key == key)?;
        Some(self.devices.remove(place))
    }

    /// Keeps a device, instead of one of its key. False: there are as many as are kept.
    pub(crate) fn insert(&mut self, device: DeviceState) -> bool {
        self.remove(&device.key);
        let room = self.devices.len() < MAX_DEVICES;
        if room {
            self.devices.push(device);
        }
        room
    }
}
