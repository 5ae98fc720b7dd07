use zbus::{
    Connection,
    fdo::DBusProxy,
    message::{Flags, Header},
    names::BusName,
    proxy::CacheProperties,
};

use super::error::CallError;
use crate::polkit::{Decision, Guarded, Polkit};

/// May the sender of this call do `operation`? Root and this process's own user may; of others,
/// polkit decides.
pub(super) async fn authorise(
    operation: Guarded<'_>,
    header: &Header<'_>,
    connection: &Connection,
    polkit: &Polkit,
) -> Result<(), CallError> {
    tracing::debug!(sender = ?header.sender(), ?operation, "asked on the bus");
    let uid = match user(header, connection).await {
        Ok(uid) if is_trusted(uid) => return Ok(()),
        Ok(uid) => uid,
        Err(error) => {
            tracing::debug!(%error, "a caller whom the bus does not know");
            return Err(CallError::standard(
                "AccessDenied",
                "the bus does not know the caller's user",
            ));
        }
    };
    let flags = header.primary().flags();
    let interactive = flags.contains(Flags::ALLOW_INTERACTIVE_AUTH);
    match polkit
        .decide_for_sender(operation, header, uid, interactive)
        .await
    {
        Decision::Granted => Ok(()),
        Decision::Denied => Err(CallError::standard(
            "AccessDenied",
            "polkit does not allow this",
        )),
        Decision::Challenge => Err(CallError::standard(
            "InteractiveAuthorizationRequired",
            "polkit has to ask the user",
        )),
        Decision::Overloaded => Err(CallError::standard(
            "LimitsExceeded",
            "too many callers wait for polkit",
        )),
    }
}

/// Is the sender of this call root, or this process's own user? The bus says who it is.
pub(super) async fn is_root_or_self(header: &Header<'_>, connection: &Connection) -> bool {
    match user(header, connection).await {
        Ok(uid) => is_trusted(uid),
        Err(error) => {
            tracing::debug!(%error, "a caller whom the bus does not know");
            false
        }
    }
}

/// Root and this process's own user.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

async fn user(header: &Header<'_>, connection: &Connection) -> zbus::Result<u32> {
    let sender = header.sender().ok_or(zbus::Error::MissingField)?;
    let bus = DBusProxy::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    let sender = BusName::from(sender.clone());
    Ok(bus.get_connection_unix_user(sender).await?)
}
