// The cosines and sines of one token, and the head sizes that have code of their own. Included like cpu_vectors.h.
#include "cpu_vectors.h"

constexpr int kRegisters = ROPE_VECTOR == 64 ? 32 : 16;  // of vectors
constexpr std::int64_t kRuns = 8;                        // through memory at a time, at most,
constexpr std::int64_t kRunsBytes = 4096;                // and of one token as many bytes

/// Cosines and sines of one token, in natural or split order; a caller's table may have its own for second members.
/// One pointer, and distances that compilers know.
struct Turns {
  float* cosine;
  [[nodiscard]] float* sine() const { return cosine + kKindFloats; }
  [[nodiscard]] float* second_cosine() const { return cosine + 2 * kKindFloats; }
  [[nodiscard]] float* second_sine() const { return cosine + 3 * kKindFloats; }
};

/// Where a token is: its sequence, and its place in it if positions are counted.
struct Place {
  std::int64_t batch, token, group, counted;
};

/// Neighbouring tokens of a batch's row, and what each of them turns by.
class Block {
 public:
  std::int64_t batch = 0, token = 0;
  int count = 0;

  Block(int num_pairs, float* floats) : step_((num_pairs + kPad + 15) / 16 * 16), floats_(floats) {}

  [[nodiscard]] int capacity() const { return std::min(kKindFloats / step_, kBlockTokens); }
  [[nodiscard]] Turns operator[](int i) const { return {floats_ + i * step_}; }

 private:
  int step_;  // floats from a token to the next one
  float* floats_;
};

/// Bytes of the widest vector whose lanes divide n.
constexpr int vector_for(int n) {
  int bytes = ROPE_VECTOR;
  while (n % (bytes / 4) != 0) bytes /= 2;
  return bytes;
}

/// Calls `heads` with the number of pairs as a constant, where it is a usual one; whether it was.
template <class HEADS>
ROPE_INLINE bool with_usual_pairs(int num_pairs, const HEADS& heads) {
  switch (num_pairs) {
    case 16:
      return heads(std::integral_constant<int, 16>()), true;
    case 32:
      return heads(std::integral_constant<int, 32>()), true;
    case 40:
      return heads(std::integral_constant<int, 40>()), true;
    case 48:
      return heads(std::integral_constant<int, 48>()), true;
    case 64:
      return heads(std::integral_constant<int, 64>()), true;
    case 128:
      return heads(std::integral_constant<int, 128>()), true;
    default:
      return false;
  }
}

/// Where q's or k's heads of a block begin, as they are and where they go: what turns of them.
template <class T>
struct Heads {
  const T* x;
  T* y;
  const Rows& rows;

  Heads(const Job& job, const Block& block, int i)
      : x(static_cast<const T*>(job.rows[i].in) + first(job, block, job.rows[i].from)),
        y(static_cast<T*>(job.rows[i].out) + first(job, block, job.rows[i].to)),
        rows(job.rows[i]) {}

  static std::int64_t first(const Job& job, const Block& block, const Strides& s) {
    return block.batch * s.batch + block.token * s.token + job.plan->rotation.rotary_offset;
  }
};

/// Calls `head(x, y, turns)` for all heads of the tokens of a block, q's and then k's; and `take(turns)` before, when
/// the token is another one. Of several tokens few heads come at a time: each of them is one run through memory.
template <class T, class TAKE, class HEAD>
ROPE_INLINE void for_each_head(const Job& job, const Block& block, const TAKE& take, const HEAD& head) {
  if (block.count == 1) {
    const Turns turns = block[0];
    take(turns);
    for (int i = 0; i < job.num_rows; ++i) {
      auto [x, y, rows] = Heads<T>(job, block, i);
      for (std::int64_t h = 0; h < rows.heads; ++h, x += rows.from.head, y += rows.to.head) head(x, y, turns);
    }
    return;
  }
  const std::int64_t bytes = 2 * job.plan->rotation.num_pairs * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t runs = std::clamp<std::int64_t>(kRunsBytes / bytes, 1, kRuns);
  for (int i = 0; i < job.num_rows; ++i) {
    const auto [x, y, rows] = Heads<T>(job, block, i);
    for (std::int64_t first = 0; first < rows.heads; first += runs) {
      const std::int64_t end = std::min(first + runs, rows.heads);
      for (int j = 0; j < block.count; ++j) {
        const Turns turns = block[j];
        take(turns);
        for (std::int64_t h = first; h < end; ++h) {
          head(x + h * rows.from.head + j * rows.from.token, y + h * rows.to.head + j * rows.to.token, turns);
        }
      }
    }
  }
}
