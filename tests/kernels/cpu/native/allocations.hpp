// Counts what the whole process allocates with `new`.
#pragma once

long allocation_count();
