// Checks for tests: a check that fails prints its place and its values, and ends the program. A test program
// runs the functions that its `main` calls.
#pragma once

#include <cstdlib>
#include <iostream>
#include <string>

#define CHECK(condition)                                                                \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      std::cerr << __FILE__ << ":" << __LINE__ << ": is false: " << #condition << "\n"; \
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

// Checks that `statement` throws `exception`, with a message that contains `words`.
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
