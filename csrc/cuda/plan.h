// Plans the launch of a Job and fills its parameters: host code, of kernel.cu only.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "core/frequency.h"
#include "core/job.h"
#include "core/spec.h"
#include "cuda/launcher.h"
#include "cuda/params.cuh"

namespace rope::cuda {
namespace {

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 31;
constexpr std::int64_t kBlockThreads = 128;
/// What a multiprocessor should have asked memory for at any time: rope_kernels/backends/triton/plan.py says why.
constexpr std::int64_t kBytesInFlight = 40 * 1024;
/// Threads that a multiprocessor has registers for, 64 each.
constexpr std::int64_t kResidentThreads = 1024;
constexpr std::int64_t kHeadsPerThread = 4;

/// Which kernel runs, and how threads are laid over its blocks.
struct Shape {
  bool read_pairs, write_pairs;
  bool general;        // angles need more than integer positions on one axis, times fixed-point turns
  std::int64_t item;   // bytes of an element
  std::int64_t chunk;  // bytes that a lane reads at once: 16, 8, or 0: element by element
  std::int64_t apart;  // elements between a lane's chunks, unless `read_pairs` and `write_pairs` differ
  std::int64_t lanes, head_slots, token_slots;
};

bool depends_on_length(const Spec& spec) { return spec.params.switch_length > 0 || spec.params.dynamic_factor > 0.0; }

bool is_integer(Number kind) { return kind == Number::kNone || kind == Number::kInt32 || kind == Number::kInt64; }

std::int64_t heads_of(const Job& job) {
  std::int64_t heads = 0;
  for (int i = 0; i < job.num_operands; ++i) heads += job.operands[i].heads;
  return heads;
}

bool is_empty(const Job& job) { return job.batch * job.tokens == 0 || heads_of(job) == 0; }

/// Why a job cannot be launched, or nullptr.
const char* refuse(const Job& job) {
  const Spec& spec = *job.spec;
  if (job.batch * job.tokens >= kMaxTokens) return "2^31 tokens or more in one call";
  if (spec.params.dynamic_factor > 0.0 && spec.params.ramp_frequency != 0.0 && spec.params.factor != 1.0) {
    return "a ramp by frequency with frequencies that grow by length";
  }
  if (spec.rotation.num_pairs > kMaxCudaPairs) return "more than 1024 pairs in a head";
  for (const std::int32_t axis : spec.rotation.axis) {
    if (axis >= 1 << (16 - kIndexBits)) return "more position axes than the CUDA kernel has bits for";
  }
  for (std::int32_t pair = 0; pair < spec.rotation.num_pairs; ++pair) {
    if (spec.rotation.frequency_of(pair) >= 1 << kIndexBits) return "a frequency index above 1023";
  }
  return nullptr;
}

/// Whether the kernels that norm run a job: those for gradients also where no head is normed.
bool goes_by_rows(const Job& job) { return job.is_normed() || job.backward; }

/// Whether the kernels for calls by a table, or those that norm, have no wide loads for this geometry.
bool is_narrow(const Job& job, std::int64_t bytes) {
  if (goes_by_rows(job)) return bytes < 16;
  return job.table.cosine != nullptr && (bytes < 16 || job.spec->rotation.pairing == Pairing::kInterleavedToHalf);
}

/// Bytes of the widest chunk to which all addresses and offsets of heads are aligned; 0: element by element.
std::int64_t chunk_of(const Job& job, const Shape& shape) {
  const Rotation& r = job.spec->rotation;
  const std::int64_t width = r.num_pairs / r.blocks;
  std::int64_t places = r.rotary_offset | r.head_dim;  // in elements
  places |= shape.read_pairs && shape.write_pairs ? r.num_pairs : width | r.distance;
  std::int64_t addresses = 0;
  for (int i = 0; i < job.num_operands; ++i) {
    const Operand& operand = job.operands[i];
    addresses |= reinterpret_cast<std::intptr_t>(operand.in) | reinterpret_cast<std::intptr_t>(operand.out);
    addresses |= reinterpret_cast<std::intptr_t>(job.norms[i].x);
    for (const Strides& s : {operand.from, operand.to, job.norms[i].x_strides}) {
      if (job.batch > 1) places |= s.batch;
      if (job.tokens > 1) places |= s.token;
      if (operand.heads > 1) places |= s.head;
    }
  }
  const std::int64_t entries = std::int64_t{r.num_pairs} * (job.spec->params.switch_length > 0 ? 2 : 1);
  if (entries > SmallParams::kEntries) return 0;
  for (const std::int64_t bytes : {16, 8}) {
    if ((addresses | places * shape.item) % bytes == 0) return is_narrow(job, bytes) ? 0 : bytes;
  }
  return 0;
}

/// Whether angles are integers times frequencies that do not change from call to call.
bool has_fixed_turns(const Job& job) {
  const bool grows = job.spec->params.dynamic_factor > 0.0 && (job.seq_len.count > 0 || job.from_seq_len.count > 0);
  return is_integer(job.positions.kind) && job.spec->rotation.phase == Phase::kExact && !grows;
}

bool is_general(const Job& job) {
  const bool several_axes = job.spec->axes > 1 && job.positions.axis != 0;
  const bool difference = depends_on_length(*job.spec) && job.from_seq_len.count > 0;
  return !has_fixed_turns(job) || several_axes || difference || job.spec->rotation.table_dtype != Number::kNone;
}

/// Threads of a multiprocessor that keep its memory busy, or all that it can hold. A thread loads its parts of `kBatch`
/// heads at once: see tiles.cuh.
std::int64_t enough_threads(const Shape& shape) {
  const std::int64_t bytes = 2 * std::max(shape.chunk, shape.item);
  const std::int64_t heads = bytes / shape.item > 8 ? 2 : 4;
  return std::min(kResidentThreads, kBytesInFlight / (heads * bytes));
}

/// What a lane reads of a head, and which kernel it takes.
Shape heads_shape_of(const Job& job) {
  const Rotation& r = job.spec->rotation;
  Shape shape{};
  const bool mixed = r.pairing == Pairing::kInterleavedToHalf;
  shape.read_pairs = r.pairing == Pairing::kInterleaved || (mixed && !job.inverse);
  shape.write_pairs = r.pairing == Pairing::kInterleaved || (mixed && job.inverse);
  shape.item = job.dtype == DType::kFloat32 ? 4 : 2;
  shape.apart = shape.read_pairs ? r.num_pairs : r.distance;
  shape.chunk = chunk_of(job, shape);
  shape.general = is_general(job);
  return shape;
}

/// Spreads the heads of few tokens over several threads until all multiprocessors are busy, but leaves each thread
/// enough heads to share its angles. Then tokens fill the block.
void fill_block(const Job& job, std::int64_t multiprocessors, Shape& shape) {
  shape.head_slots = 1;
  const std::int64_t threads = job.batch * job.tokens * shape.lanes, enough = multiprocessors * enough_threads(shape);
  while (shape.head_slots * kHeadsPerThread * 2 <= heads_of(job) && shape.head_slots * threads < enough &&
         shape.head_slots * shape.lanes * 2 <= kBlockThreads) {
    shape.head_slots *= 2;
  }
  shape.token_slots = std::max(std::int64_t{1}, kBlockThreads / (shape.lanes * shape.head_slots));
}

Shape shape_of(const Job& job, std::int64_t multiprocessors) {
  Shape shape = heads_shape_of(job);
  const std::int64_t pairs = job.spec->rotation.num_pairs;
  shape.lanes = shape.chunk > 0 ? pairs * shape.item / shape.chunk : pairs;
  fill_block(job, multiprocessors, shape);
  return shape;
}

Side side_of(const void* data, const Strides& s, const Shape& shape) {
  const std::int64_t head = s.head * shape.item;
  return {static_cast<char*>(const_cast<void*>(data)), s.batch * shape.item, s.token * shape.item, head,
          head * shape.head_slots};
}

Tensor tensor_of(const Operand& operand, const Shape& shape) {
  return {side_of(operand.in, operand.from, shape), side_of(operand.out, operand.to, shape),
          static_cast<std::int32_t>(operand.heads)};
}

Chunks chunks_of(const Rotation& r, const Shape& shape, bool neighbours) {
  const auto item = static_cast<std::int32_t>(shape.item);
  const std::int32_t width = r.num_pairs / r.blocks, first = r.rotary_offset * item;
  if (!neighbours) return {r.distance * shape.item, first, item, (2 * r.distance - width) * item};
  if (shape.chunk == 0) return {shape.item, first, 2 * item, 0};
  if (shape.read_pairs != shape.write_pairs) return {shape.chunk, first, 2 * item, 0};
  return {r.num_pairs * shape.item, first, 2 * item, 0};
}

/// Whether all tokens can be taken as those of one batch entry.
bool is_flat(const Job& job, bool by_group) {
  const auto flat = [&](std::int64_t batch, std::int64_t token) { return batch == job.tokens * token; };
  if (job.batch == 1) return true;
  if (by_group || !flat(job.positions.batch, job.positions.token)) return false;
  for (int i = 0; i < job.num_operands; ++i) {
    for (const Strides& s : {job.operands[i].from, job.operands[i].to, job.norms[i].x_strides}) {
      if (!flat(s.batch, s.token)) return false;
    }
  }
  return true;
}

Lengths lengths_of(const PerGroup& values) {
  if (values.count == 0) return {nullptr, 0, 0};
  if (values.is_number) return {nullptr, 0, *values.data};
  return {values.data, values.count > 1 ? values.stride : 0, 0};
}

void fill_angles(const Job& job, Settings& at) {
  const Spec& spec = *job.spec;
  const FrequencyParams& f = spec.params;
  const Rotation& r = spec.rotation;
  at.positions = job.positions;
  if (spec.axes == 1) at.positions.axis = 0;
  at.offset = lengths_of(job.offset);
  if (depends_on_length(spec)) {
    at.seq_len = lengths_of(job.seq_len);
    at.from_seq_len = lengths_of(job.from_seq_len);
  }
  if (f.dynamic_factor > 0.0) {
    at.growth = {f.dynamic_length, f.dynamic_factor / static_cast<double>(f.dynamic_length), -2.0 / (f.freq_dim - 2)};
  }
  at.switch_length = f.switch_length;
  at.scaling = job.unscaled ? 1.0F : static_cast<float>(f.scaling);
  at.long_scaling = job.unscaled ? 1.0F : static_cast<float>(f.long_scaling);
  at.long_start = f.switch_length > 0 ? r.num_pairs : 0;
  at.block_pairs = Divisor(static_cast<std::uint32_t>(r.num_pairs / r.blocks));
  at.phase = r.phase;
  at.table_dtype = r.table_dtype;
  at.inverse = job.inverse;
  at.entries = has_fixed_turns(job) ? Entries::kTurns : Entries::kRadians;
}

void fill_tokens(const Job& job, const Shape& shape, Settings& at) {
  at.lanes = Divisor(static_cast<std::uint32_t>(shape.lanes));
  at.head_slots = static_cast<std::int32_t>(shape.head_slots);
  at.head_slots_log2 = std::countr_zero(static_cast<std::uint32_t>(shape.head_slots));
  at.token_slots = static_cast<std::int32_t>(shape.token_slots);
  at.count = static_cast<std::uint32_t>(job.batch * job.tokens);
  at.tokens_per_batch = static_cast<std::uint32_t>(job.tokens);
  const bool counted = job.positions.kind == Number::kNone;
  const bool by_group = counted || job.offset.count > 1 || at.seq_len.stride != 0 || at.from_seq_len.stride != 0;
  at.batched = !is_flat(job, by_group);
  at.batches_per_token = ~std::uint64_t{0} / static_cast<std::uint64_t>(job.tokens) + 1;
  at.packed = job.packed;
}

void fill_operands(const Job& job, const Shape& shape, Settings& at) {
  const Rotation& r = job.spec->rotation;
  const auto item = static_cast<std::int32_t>(shape.item);
  at.q = tensor_of(job.operands[0], shape);
  if (job.num_operands > 1) at.k = tensor_of(job.operands[1], shape);
  at.jump = static_cast<std::int32_t>(r.num_pairs / 2 - shape.chunk / (2 * shape.item));
  at.read = chunks_of(r, shape, shape.read_pairs);
  at.write = chunks_of(r, shape, shape.write_pairs);
  for (const Span& span : job.spec->untouched) at.copied[at.num_copied++] = {span.first * item, span.last * item};
  at.head_bytes = r.head_dim * item;
  at.in_place = job.in_place;
  at.exchanges = job.in_place && shape.read_pairs != shape.write_pairs;
}

template <class P>
void fill(const Job& job, const Shape& shape, P& params) {
  params.at = {};
  fill_operands(job, shape, params.at);
  fill_angles(job, params.at);
  fill_tokens(job, shape, params.at);
  const Spec& spec = *job.spec;
  const auto pairs = static_cast<std::size_t>(spec.rotation.num_pairs);
  const auto sets = params.at.long_start > 0 ? 2U : 1U;
  for (std::size_t i = 0; i < sets * pairs; ++i) {
    const Frequencies& f = i < pairs ? spec.initial : spec.beyond;
    const std::size_t pair = i % pairs;
    params.entries[i] = params.at.entries == Entries::kTurns
                            ? static_cast<std::uint64_t>(f.high[pair]) << 32 | f.low[pair]
                            : std::bit_cast<std::uint64_t>(f.radians[pair]);
  }
  if (!shape.general && shape.chunk == 16) return;
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::int32_t axis = spec.rotation.axis.empty() ? 0 : spec.rotation.axis[i];
    const std::int32_t index = spec.rotation.frequency_of(static_cast<std::int32_t>(i));
    params.places[i] = static_cast<std::uint16_t>(axis << kIndexBits | index);
  }
}

}  // namespace
}  // namespace rope::cuda
