// What a test says: CHECK stops at the first wrong thing and names it. A test program is the functions that
// main calls.
#pragma once

#include <cstdlib>
#include <iostream>
#include <string>

#define CHECK(condition)                                                                \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      std::cerr << __FILE__ << ":" << __LINE__ << ": not true: " << #condition << "\n"; \
      std::exit(1);                                                                     \
    }                                                                                   \
  } while (false)

#define CHECK_EQUAL(actual, expected)                                                                        \
  do {                                                                                                       \
    const auto& check_actual = (actual);                                                                     \
    const auto& check_expected = (expected);                                                                 \
    if (!(check_actual == check_expected)) {                                                                 \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " << #actual << " is " << check_actual << ", expected " \
                << check_expected << "\n";                                                                   \
      std::exit(1);                                                                                          \
    }                                                                                                        \
  } while (false)

// `statement` throws `exception`, and its message has `words` in it.
#define CHECK_THROWS(statement, exception, words)                                                          \
  do {                                                                                                     \
    std::string check_message = "nothing was thrown";                                                      \
    try {                                                                                                  \
      statement;                                                                                           \
    } catch (const exception& check_error) {                                                               \
      check_message = check_error.what();                                                                  \
    }                                                                                                      \
    if (check_message.find(words) == std::string::npos) {                                                  \
      std::cerr << __FILE__ << ":" << __LINE__ << ": " << check_message << ", expected " << words << "\n"; \
      std::exit(1);                                                                                        \
    }                                                                                                      \
  } while (false)
