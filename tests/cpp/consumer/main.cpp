// A user's program, built against the installed package: rotates one token, one head of two channels, by one radian.
#include <rope_kernels/rotate.h>

#include <cmath>
#include <cstdio>

int main() {
  const rope::Spec spec = rope::parse_spec("theta=1.0;freq_dim=2;num_frequencies=1;head_dim=2;num_pairs=1;distance=1");
  float x[2] = {1.0F, 0.0F};
  const std::int64_t position = 1;
  rope::Job job;
  job.spec = &spec;
  job.operands[0] = {x, x, 1, {2, 2, 2}, {2, 2, 2}};
  job.num_operands = 1;
  job.batch = job.tokens = 1;
  job.positions = {&position, rope::Number::kInt64, 0, 0, 1};
  job.in_place = true;
  rope::rotate_cpu(job, 0, 1);
  std::printf("%s: cos 1 = %.7f, sin 1 = %.7f\n", rope::current_isa().c_str(), x[0], x[1]);
  return std::abs(x[0] - std::cos(1.0F)) < 1e-6F && std::abs(x[1] - std::sin(1.0F)) < 1e-6F ? 0 : 1;
}
