//! From any verified view and any news follows a verified view that leaves out the dead, the same for
//! every order of the news; and the planner shares out all items among its members.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use libfuzzer_sys::fuzz_target;
use p2ptrain_protocol::id::PeerId;
use p2ptrain_protocol::planner;
use p2ptrain_protocol::view::{News, View, may_continue};
use p2ptrain_protocol::wire::{self, Kind};

type Input = (View, BTreeMap<PeerId, News>, BTreeSet<PeerId>, u16);

fuzz_target!(|data: &[u8]| {
    let Ok((mut view, news, group, items)) = wire::from_bytes::<Input>(Kind::View, data) else {
        return;
    };
    view.members.sort_unstable();
    view.members.dedup_by_key(|member| member.peer);
    let Ok(view) = View::new(view.epoch, view.members) else { return };
    if view.members.is_empty() || news.values().any(|news| news.verify().is_err()) {
        return;
    }
    let group: Vec<PeerId> = group.into_iter().collect();
    let (next, _) = view.next(&group, &news);
    if !next.members.is_empty() {
        next.verify().expect("a view follows from a view");
    }
    let dead: BTreeSet<PeerId> = view.peers().filter(|peer| !group.contains(peer)).collect();
    for peer in &dead {
        let kept = next.member(peer).zip(view.member(peer));
        assert!(kept.is_none_or(|(new, old)| new.incarnation > old.incarnation));
    }
    let _ = may_continue(&view, &dead, &BTreeSet::new());
    let _ = may_continue(&view, &BTreeSet::new(), &dead);
    let (shares, _) = planner::assign(&view.members, u32::from(items), view.epoch);
    let mut end = 0;
    for share in shares {
        assert_eq!(share.start, end);
        end = share.end;
    }
    assert_eq!(end, u32::from(items));
});
