//! Families of samples, as the encoder wants them.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Unit;

use crate::meters::{BUCKET_NANOS, Histogram};

/// A name and a value.
pub(super) type Label<'a> = (&'static str, &'a str);

/// A number, as exact as it is.
#[derive(Clone, Copy)]
pub(super) enum Number {
    /// Of things, or a yes or no.
    Whole(u64),
    /// Of seconds.
    Real(f64),
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}

impl From<bool> for Number {
    fn from(is: bool) -> Self {
        Self::Whole(is.into())
    }
}

/// Where families go.
pub(super) struct Page<'a>(pub(super) DescriptorEncoder<'a>);

impl Page<'_> {
    fn numbers<'l, const N: usize>(
        &mut self,
        kind: MetricType,
        (name, unit, help): (&str, Option<Unit>, &str),
        samples: impl IntoIterator<Item = ([Label<'l>; N], Number)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, number) in samples {
            let mut sample = family.encode_family(&labels)?;
            let none = None::<&Exemplar<NoLabelSet, f64>>;
            match (kind, number) {
                (MetricType::Counter, Number::Whole(n)) => sample.encode_counter(&n, none)?,
                (MetricType::Counter, Number::Real(n)) => sample.encode_counter(&n, none)?,
                (_, Number::Whole(n)) => sample.encode_gauge(&n)?,
                (_, Number::Real(n)) => sample.encode_gauge(&n)?,
            }
        }
        Ok(())
    }

    pub(super) fn gauge(
        &mut self,
        name: &str,
        help: &str,
        number: impl Into<Number>,
    ) -> fmt::Result {
        let samples = [([], number.into())];
        self.numbers(MetricType::Gauge, (name, None, help), samples)
    }

    pub(super) fn gauges<'l, const N: usize>(
        &mut self,
        (name, unit, help): (&str, Option<Unit>, &str),
        samples: impl IntoIterator<Item = ([Label<'l>; N], Number)>,
    ) -> fmt::Result {
        self.numbers(MetricType::Gauge, (name, unit, help), samples)
    }

    pub(super) fn counters<'l, const N: usize>(
        &mut self,
        (name, unit, help): (&str, Option<Unit>, &str),
        samples: impl IntoIterator<Item = ([Label<'l>; N], Number)>,
    ) -> fmt::Result {
        self.numbers(MetricType::Counter, (name, unit, help), samples)
    }

    /// One of a set of words holds.
    pub(super) fn word(
        &mut self,
        name: &str,
        help: &str,
        key: &'static str,
        words: &[(&str, bool)],
    ) -> fmt::Result {
        let samples = words
            .iter()
            .map(|(word, is)| ([(key, *word)], Number::from(*is)));
        self.gauges((name, None, help), samples)
    }

    pub(super) fn durations<'l, const N: usize>(
        &mut self,
        (name, help): (&str, &str),
        samples: impl IntoIterator<Item = ([Label<'l>; N], &'l Histogram)>,
    ) -> fmt::Result {
        let unit = Some(Unit::Seconds);
        let kind = MetricType::Histogram;
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, histogram) in samples {
            let counts = histogram.buckets();
            let ends = BUCKET_NANOS.iter().map(|&end| seconds(end));
            let buckets: Vec<_> = ends.chain([f64::INFINITY]).zip(counts).collect();
            family
                .encode_family(&labels)?
                .encode_histogram::<NoLabelSet>(
                    seconds(histogram.sum_nanos()),
                    counts.iter().sum(),
                    &buckets,
                    None,
                )?;
        }
        Ok(())
    }
}

pub(super) fn seconds(nanos: u64) -> f64 {
    std::time::Duration::from_nanos(nanos).as_secs_f64()
}

/// The words of a set, with the one that holds.
macro_rules! one_of {
    ($kind:ty, $holds:expr) => {
        <$kind>::ALL
            .iter()
            .map(|word| (word.as_str(), *word == $holds))
            .collect::<Vec<_>>()
    };
}

/// The same of several, each with a label that says whose.
macro_rules! words_of {
    ($kind:ty, $things:expr, $label:literal, $field:ident, $key:literal) => {
        $things.iter().flat_map(|thing| {
            <$kind>::ALL.iter().map(move |word| {
                let is = Number::from(*word == thing.$field);
                ([($label, thing.name.as_str()), ($key, word.as_str())], is)
            })
        })
    };
}

pub(super) use {one_of, words_of};
