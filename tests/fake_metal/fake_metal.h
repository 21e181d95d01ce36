// As much of Objective-C and of Metal as device_apple.cpp talks to, so that it runs where there is no Mac.
//
// Messages arrive as on a Mac, by name, and one that a class does not know ends the program. Objects count
// their owners, autoreleased ones need a pool, and n_objects() says whether any is left. A text holds one
// kernel a line: its name and the threads it may have in a threadgroup. Every kernel does the same: y[i] =
// x[i] + add for the threads i of its grid, with x in buffer 1, y in buffer 2 and add in the arguments.
#pragma once
#include <string>
#include <vector>

namespace fake_metal {

struct Gpu {
  bool is_there = true, is_apple = true, refuses_buffers = false;
  int macos = 15;
  std::vector<int> failures;         // the codes with which the next passes end; 0: well
  std::vector<std::string> history;  // what was sent, as far as a test may care for its order
};
extern Gpu gpu;

int n_objects();         // alive
int n_without_a_pool();  // objects that were autoreleased while there was no pool

}  // namespace fake_metal
