// Copies channels that are not rotated from the inputs to the outputs.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/job.h"
#include "core/spec.h"
#include "cpu/cos_sin.h"

namespace rope::ROPE_ISA {
namespace {

/// Copies channels of all heads of a token to the output; whole dense heads in one copy.
void copy_channels(const Job& job, const Operand& operand, std::int64_t batch, std::int64_t token, const Span& span) {
  const std::int64_t size = job.dtype == DType::kFloat32 ? 4 : 2;
  const char* from = static_cast<const char*>(operand.in) +
                     (batch * operand.from.batch + token * operand.from.token + span.first) * size;
  char* to =
      static_cast<char*>(operand.out) + (batch * operand.to.batch + token * operand.to.token + span.first) * size;
  const std::int64_t width = span.last - span.first;
  if (operand.from.head == width && operand.to.head == width) {
    std::memcpy(to, from, static_cast<std::size_t>(operand.heads * width * size));
    return;
  }
  for (std::int64_t h = 0; h < operand.heads; ++h) {
    std::memcpy(to + h * operand.to.head * size, from + h * operand.from.head * size,
                static_cast<std::size_t>(width * size));
  }
}

/// Copies the channels that are not rotated. Dense heads are copied whole: one copy is faster than many, and the
/// rotated channels are written over it.
void copy_untouched(const Job& job, const Operand& operand, std::int64_t batch, std::int64_t token) {
  const std::int32_t head_dim = job.spec->rotation.head_dim;
  if (operand.from.head == head_dim && operand.to.head == head_dim && !job.spec->untouched.empty()) {
    copy_channels(job, operand, batch, token, {0, head_dim});
    return;
  }
  for (const Span& span : job.spec->untouched) copy_channels(job, operand, batch, token, span);
}

/// Out of place, copies the unchanged channels of a token: all of them if it is outside all sequences.
void copy_unchanged(const Job& job, const Place& at, bool outside) {
  for (int i = 0; i < job.num_operands; ++i) {
    if (job.operands[i].is_in_place()) continue;
    if (outside) {
      copy_channels(job, job.operands[i], at.batch, at.token, {0, job.spec->rotation.head_dim});
    } else {
      copy_untouched(job, job.operands[i], at.batch, at.token);
    }
  }
}

}  // namespace
}  // namespace rope::ROPE_ISA
