// rotate_cpu on every instruction set of this machine: values, bytes that must not change, and the same bits each time.
#include "calls.h"

namespace {

using buffers::Gaps;
using calls::Call, calls::check_values, calls::spec_of;

/// The sizes at which the kernels change their path, in each pairing.
const std::vector<std::string>& geometries() {
  static const std::vector<std::string> all = [] {
    std::vector<std::string> specs;
    for (const int pairs : {1, 2, 3, 4, 6, 9, 16, 20, 32, 33, 36, 40, 48, 56, 64, 128}) {
      for (const char* pairing : {"half", "interleaved", "interleaved_to_half"}) {
        specs.push_back(spec_of(2 * pairs, pairs, pairs, std::string("pairing=") + pairing));
      }
    }
    specs.push_back(spec_of(96, 12, 12));
    specs.push_back(spec_of(128, 16, 64));
    specs.push_back(spec_of(128, 16, 64, "pairing=interleaved"));
    specs.push_back(spec_of(97, 16, 17, "rotary_offset=5;attention_scaling=1.25"));
    specs.push_back(spec_of(100, 16, 16, "rotary_offset=64;pairing=interleaved_to_half"));
    specs.push_back(spec_of(76, 36, 18, "blocks=2"));
    specs.push_back(spec_of(2048, 1024, 1024));
    specs.push_back(spec_of(2048, 1024, 1024, "pairing=interleaved_to_half"));
    return specs;
  }();
  return all;
}

struct Layout {
  const char* name;
  Gaps gaps;
};
constexpr Layout kLayouts[] = {{"dense", {0, 0, 0, 0}},
                               {"even", {2, 4, 6, 8}},
                               {"odd", {1, 1, 2, 5}},
                               {"heads first", {0, 0, 0, 0, true}},
                               {"heads first, odd", {1, 2, 1, 5, true}}};

/// Checks a call out of place, in parts and in place: values, unchanged gaps and inputs, and the same bits each time.
void check_call(Call& call, const std::string& what) {
  const auto q = call.q.bytes(), k = call.k.bytes(), q_out = call.q_out.bytes(), k_out = call.k_out.bytes();
  constexpr std::int64_t kAll = Call::kBatch * Call::kTokens;
  rope::rotate_cpu(call.job, 0, kAll);
  check_values(call, call.q, call.q_out, what + " q");
  check_values(call, call.k, call.k_out, what + " k");
  CHECK(call.q.bytes() == q && call.k.bytes() == k, what, "the inputs changed");
  CHECK(call.q_out.gaps_kept(q_out) && call.k_out.gaps_kept(k_out), what, "a gap of an output changed");
  const auto q_bits = call.q_out.elements(), k_bits = call.k_out.elements();
  const bool words = call.job.words;

  call.q_out.restore(q_out);
  call.k_out.restore(k_out);
  rope::rotate_cpu(call.job, 4, kAll);
  rope::rotate_cpu(call.job, 0, 1);
  rope::rotate_cpu(call.job, 1, 4);
  CHECK(call.q_out.elements() == q_bits && call.k_out.elements() == k_bits, what, "parts differ from the whole");

  call.write_in_place();
  call.job.words = call.job.words && words;
  rope::rotate_cpu(call.job, 0, kAll);
  CHECK(call.q.elements() == q_bits && call.k.elements() == k_bits, what, "in place differs");
  CHECK(call.q.gaps_kept(q) && call.k.gaps_kept(k), what, "a gap changed in place");
}

void check_everything_on(const std::string& isa) {
  CHECK(rope::force_isa(isa), isa);
  CHECK(rope::current_isa() == isa, isa, rope::current_isa());
  std::mt19937 random(1);
  for (const std::string& text : geometries()) {
    for (const rope::DType dtype : {rope::DType::kFloat32, rope::DType::kFloat16, rope::DType::kBFloat16}) {
      for (const Layout& layout : kLayouts) {
        for (const bool inverse : {false, true}) {
          Call call(text, dtype, layout.gaps, inverse ? Gaps{0, 0, 0, 0} : layout.gaps, random);
          call.job.inverse = inverse;
          check_call(call, isa + " " + layout.name + (inverse ? " inverse " : " ") +
                               std::to_string(static_cast<int>(dtype)) + " " + text);
        }
      }
    }
  }
  rope::force_isa("");
}

TEST(every_isa_rotates_every_geometry) {
  for (const std::string& isa : rope::isas()) check_everything_on(isa);
}

TEST(an_unknown_isa_is_refused) {
  const std::string before = rope::current_isa();
  CHECK(!rope::force_isa("avx1024"));
  CHECK(rope::current_isa() == before);
  CHECK(!rope::isas().empty() && rope::isas().back() == "portable" && rope::isas().front() == before);
}

TEST(streaming_stores_change_no_bit) {
  std::mt19937 random(2);
  for (const std::string& isa : rope::isas()) {
    rope::force_isa(isa);
    for (const char* pairing : {"half", "interleaved"}) {
      for (const int pairs : {32, 64, 96, 128}) {
        for (const rope::DType dtype : {rope::DType::kFloat32, rope::DType::kBFloat16}) {
          const std::string text = spec_of(2 * pairs, pairs, pairs, std::string("pairing=") + pairing);
          Call call(text, dtype, {0, 0, 0, 0}, {0, 0, 0, 0}, random);
          CHECK(call.q_out.aligned(64) && call.k_out.aligned(64));
          rope::rotate_cpu(call.job, 0, 6);
          const auto q = call.q_out.elements(), k = call.k_out.elements();
          call.job.streaming = true;
          rope::rotate_cpu(call.job, 0, 6);
          CHECK(call.q_out.elements() == q && call.k_out.elements() == k, isa, text);
        }
      }
    }
  }
  rope::force_isa("");
}

}  // namespace
