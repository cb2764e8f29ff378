// Gives random inputs, many of them hostile, to code that computes with a caller's numbers, and compares the
// results with a slow truth. Built with sanitizers, it also finds every access outside of a block, and every
// overflow.
//
//   fuzz               runs all subjects, for VITCACHE_FUZZ_SECONDS (20) in all, from VITCACHE_FUZZ_SEED (a
//   new one) fuzz SUBJECT SEED  runs one input: a failed run prints these words
#include "fuzz.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <new>
#include <random>
#include <string>

namespace {

using Clock = std::chrono::steady_clock;
using fuzz::Random;
using fuzz::Verdict;

struct Entry {
  const char* name;
  fuzz::Subject subject;
};

constexpr Entry kSubjects[] = {
    {"range_of_a_tensor", fuzz::range_of_a_tensor}, {"range_of_rows", fuzz::range_of_rows},
    {"strided_view", fuzz::strided_view},           {"placement_tables", fuzz::placement_tables},
    {"placement_copies", fuzz::placement_copies},   {"step_plan", fuzz::step_plan},
};
constexpr std::size_t kNumSubjects = sizeof kSubjects / sizeof kSubjects[0];

constexpr auto kSlice = std::chrono::milliseconds(100);
constexpr unsigned kHangSeconds = 60;

// Of a child process, shared with its parent: however the child ends, the parent knows the input.
struct Progress {
  std::size_t subject;
  std::uint64_t seed;
  std::uint64_t accepted[kNumSubjects];
  std::uint64_t refused[kNumSubjects];
};

void run(const Entry& entry, std::uint64_t seed, std::uint64_t& accepted, std::uint64_t& refused) {
  Random random(seed);
  ++(entry.subject(random) == Verdict::kAccepted ? accepted : refused);
}

// Runs subjects in turn until `deadline`. An input that takes longer than kHangSeconds ends the process.
void run_until(Clock::time_point deadline, std::uint64_t seed, Progress& progress) {
  Random seeds(seed);
  for (std::size_t subject = 0; Clock::now() < deadline; subject = (subject + 1) % kNumSubjects) {
    progress.subject = subject;
    alarm(kHangSeconds);
    const auto end = Clock::now() + kSlice;
    for (int count = 0; count % 16 != 0 || Clock::now() < end; ++count) {
      progress.seed = seeds.bits();
      run(kSubjects[subject], progress.seed, progress.accepted[subject], progress.refused[subject]);
    }
  }
}

// Prints the counts. Returns whether every subject accepted and refused at least one input of 50: a fuzzer
// whose inputs are all refused, or all accepted, tests little.
bool report(const Progress& progress) {
  bool is_balanced = true;
  std::uint64_t total = 0;
  for (std::size_t subject = 0; subject < kNumSubjects; ++subject) {
    const std::uint64_t accepted = progress.accepted[subject], refused = progress.refused[subject];
    std::cout << "  " << kSubjects[subject].name << ": " << accepted << " accepted, " << refused
              << " refused\n";
    total += accepted + refused;
    if (std::min(accepted, refused) * 50 < accepted + refused) is_balanced = false;
  }
  std::cout << "  " << total << " inputs\n";
  if (!is_balanced) std::cout << "a subject accepts or refuses too few of its inputs\n";
  return is_balanced;
}

int run_all(double seconds, std::uint64_t seed) {
  void* const shared =
      mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 2;
  auto* const progress = new (shared) Progress{};
  std::cout << "fuzz: " << seconds << " seconds, VITCACHE_FUZZ_SEED=" << seed << std::endl;
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const pid_t child = fork();
  if (child < 0) return 2;
  if (child == 0) {
    run_until(deadline, seed, *progress);
    std::exit(0);  // the sanitizers look for leaks
  }
  int status = 0;
  waitpid(child, &status, 0);
  const bool is_balanced = report(*progress);
  if (status == 0) return is_balanced ? 0 : 1;
  std::cout << "failed with status " << status << ": fuzz " << kSubjects[progress->subject].name << " "
            << progress->seed << "\n";
  return 1;
}

int run_one(const std::string& name, std::uint64_t seed) {
  for (const Entry& entry : kSubjects) {
    if (name != entry.name) continue;
    std::uint64_t accepted = 0, refused = 0;
    run(entry, seed, accepted, refused);
    std::cout << (accepted > 0 ? "accepted\n" : "refused\n");
    return 0;
  }
  std::cerr << "fuzz has no subject " << name << "\n";
  return 2;
}

}  // namespace

int main(int count, char** words) {
  if (count == 3) return run_one(words[1], std::strtoull(words[2], nullptr, 10));
  const char* const seconds = std::getenv("VITCACHE_FUZZ_SECONDS");
  const char* const seed = std::getenv("VITCACHE_FUZZ_SEED");
  return run_all(seconds == nullptr ? 20 : std::strtod(seconds, nullptr),
                 seed == nullptr ? std::random_device()() : std::strtoull(seed, nullptr, 10));
}
