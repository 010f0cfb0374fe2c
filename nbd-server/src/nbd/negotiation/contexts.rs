//! LIST_META_CONTEXT and SET_META_CONTEXT: there is one metadata context, `base:allocation`, for every export.
//!
//! Every length has to be exact. What a query means is another matter: a context that does not exist is no error, since
//! clients ask for those of all servers that they know.

use zerocopy::byteorder::big_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::{BAD_NAME, Reply, TOO_SHORT, find, split_string, valid_name};
use crate::nbd::exports::{ExportIndex, ExportTable};
use crate::nbd::protocol::{ALLOCATION_CONTEXT, ALLOCATION_CONTEXT_ID, OptionCode, ReplyCode};

/// What stands for all contexts of the namespace in a list.
const WILDCARD: &str = "base:";

/// Answers one of the two; the export for which the context was chosen, or would be shown.
pub(super) fn answer(
    data: &[u8],
    structured: bool,
    exports: &ExportTable,
    reply: &mut Reply<'_>,
) -> Option<ExportIndex> {
    let is_list = reply.option == OptionCode::ListMetaContext;
    if !structured {
        reply.error(ReplyCode::ErrInvalid, "send STRUCTURED_REPLY first");
        return None;
    }
    let query = match Query::parse(data) {
        Ok(query) => query,
        Err(text) => {
            reply.error(ReplyCode::ErrInvalid, text);
            return None;
        }
    };
    let (export, _) = find(query.name, exports, reply)?;
    let found = query.named || (is_list && (query.wildcard || query.is_empty));
    if found {
        // In a list the number means nothing.
        let id = U32::new(if is_list { 0 } else { ALLOCATION_CONTEXT_ID });
        let name = ALLOCATION_CONTEXT.as_bytes();
        reply.put(ReplyCode::MetaContext, &[id.as_bytes(), name]);
    }
    reply.put(ReplyCode::Ack, &[]);
    found.then_some(export)
}

/// A valid request.
struct Query<'a> {
    name: &'a str,
    is_empty: bool,
    named: bool,
    wildcard: bool,
}

impl<'a> Query<'a> {
    fn parse(data: &'a [u8]) -> Result<Self, &'static str> {
        let (name, rest) = split_string(data).ok_or(TOO_SHORT)?;
        let (count, mut rest) = U32::read_from_prefix(rest).map_err(|_| TOO_SHORT)?;
        let mut query = Self {
            name: valid_name(name).ok_or(BAD_NAME)?,
            is_empty: count == 0,
            named: false,
            wildcard: false,
        };
        for _ in 0..count.get() {
            let (text, tail) = split_string(rest).ok_or(TOO_SHORT)?;
            let text = valid_name(text).ok_or("queries are UTF-8 of up to 4096 bytes, no NUL")?;
            query.named |= text == ALLOCATION_CONTEXT;
            query.wildcard |= text == WILDCARD;
            rest = tail;
        }
        if !rest.is_empty() {
            return Err("the option's data is longer than its contents");
        }
        Ok(query)
    }
}
