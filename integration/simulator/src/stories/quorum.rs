//! Who may serve while nodes are away.

use super::*;
