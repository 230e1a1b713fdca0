//! UPDATE bytes -> what is left to act upon. The frame of the message; the attributes have a room of their own.

use rustc_hash::FxHashSet;

use crate::types::Family;
use crate::wire::codec::DecodeContext;
use crate::wire::error::WireError;
use crate::wire::iana::{error::UPDATE, update_error};
use crate::wire::message::{Fault, FaultOutcome, Nlri, Reach, Update};
use crate::wire::nlri;
use crate::wire::update::attributes::{self, Collected};

/// Decodes the body of an UPDATE.
///
/// # Errors
/// Session resets that RFC 7606 has left: 3/1 for lengths that disagree or a doubled MP attribute, 3/2 for an unknown
/// well-known attribute, 3/9 for an MP attribute whose NLRI cannot be found, 3/10 for NLRI that cannot be read.
pub(crate) fn decode(body: &[u8], ctx: &DecodeContext) -> Result<Update, WireError> {
    let (withdrawn, attributes, announced) = split(body)
        .ok_or_else(|| WireError::new(UPDATE, update_error::ATTRIBUTE_LIST, [], "UPDATE lengths disagree"))?;
    if body.len() == 4 {
        return Ok(end_of_rib(Family::Ipv4Unicast, ctx));
    }
    let mut update = Update::default();
    classic_nlri(withdrawn, ctx, &mut update.withdrawn)?;
    let mut nlri = Vec::new();
    classic_nlri(announced, ctx, &mut nlri)?;
    let mut collected = attributes::collect(attributes, ctx)?;

    if let Some(unreach) = collected.mp_unreach.take() {
        let alone = withdrawn.is_empty() && announced.is_empty() && !collected.other_than_mp_unreach;
        if alone && unreach.nlri.is_empty() && collected.faults.is_empty() {
            return Ok(unreach.family.map_or_else(Update::default, |family| end_of_rib(family, ctx)));
        }
        update.withdrawn.extend(unreach.nlri);
    }
    finish(update, nlri, !announced.is_empty(), collected)
}

/// Withdrawn Routes, Path Attributes and NLRI; `None` if the two lengths do not fit the message (RFC 4271 6.3).
fn split(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (withdrawn, rest) = counted(body)?;
    let (attributes, nlri) = counted(rest)?;
    Some((withdrawn, attributes, nlri))
}

fn counted(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = input.split_first_chunk::<2>()?;
    rest.split_at_checked(u16::from_be_bytes(*len).into())
}

fn end_of_rib(family: Family, ctx: &DecodeContext) -> Update {
    Update { end_of_rib: ctx.families[family].then_some(family), ..Update::default() }
}

/// The IPv4 fields outside of attributes. Where IPv4 is not in use they are checked and dropped.
fn classic_nlri(field: &[u8], ctx: &DecodeContext, out: &mut Vec<Nlri>) -> Result<(), WireError> {
    let family = Family::Ipv4Unicast;
    nlri::decode(field, family, ctx.add_path[family], out)
        .map_err(|_| WireError::new(UPDATE, update_error::NETWORK_FIELD, [], "IPv4 NLRI cannot be read"))?;
    if !ctx.families[family] {
        out.clear();
    }
    Ok(())
}

/// Puts prefixes and attributes together and lets RFC 7606 3 and 5.2 decide what becomes of them.
fn finish(
    mut update: Update,
    classic: Vec<Nlri>,
    classic_present: bool,
    mut collected: Collected,
) -> Result<Update, WireError> {
    let mp_reach = collected.mp_reach.take();
    let announces = classic_present || mp_reach.as_ref().is_some_and(|mp| mp.has_nlri);
    if announces {
        collected.require_mandatory(classic_present);
    }
    let withdraw = collected.treat_as_withdraw();
    if withdraw && !announces && collected.other_than_mp_unreach {
        // RFC 7606 5.2: attributes without reachable NLRI, and broken ones: the NLRI may have been overlooked.
        let subcode = update_error::ATTRIBUTE_LIST;
        return Err(WireError::new(UPDATE, subcode, [], "malformed attributes without reachable NLRI"));
    }
    if !classic.is_empty()
        && let Some(next_hop) = collected.next_hop
    {
        update.reach.push(Reach { family: Family::Ipv4Unicast, next_hop, nlri: classic });
    } else {
        // Without a NEXT_HOP this is already treat-as-withdraw.
        update.withdrawn.extend(classic);
    }
    update.reach.extend(mp_reach.and_then(|mp| mp.reach));
    if withdraw {
        update.withdrawn.extend(update.reach.drain(..).flat_map(|reach| reach.nlri));
    } else if !update.reach.is_empty() {
        forget_withdrawals_of_announced(&mut update);
    }
    update.faults = std::mem::take(&mut collected.faults);
    if !update.reach.is_empty() {
        update.attributes = collected.into_attributes(&mut update.faults);
    }
    Ok(update)
}

/// RFC 4271 4.3: a prefix in both fields counts as announced only.
fn forget_withdrawals_of_announced(update: &mut Update) {
    if update.withdrawn.is_empty() {
        return;
    }
    let announced: FxHashSet<Nlri> =
        update.reach.iter().flat_map(|reach| reach.nlri.iter().copied()).collect();
    update.withdrawn.retain(|nlri| !announced.contains(nlri));
}

/// A fault for the log and the counters.
pub(super) fn fault(code: u8, outcome: FaultOutcome, reason: &'static str) -> Fault {
    Fault { code, outcome, reason }
}
