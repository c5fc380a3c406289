/* simulation.h — a sweep on paper: the real planner's cells, the real scheduler's decisions, a clock that is a number.
 *
 * Rank 0 is modelled as it is: while its own worker runs it looks at its mail every SIMULATION_LOOK_S, then takes in all
 * that has come, one message after another, each for as long as the input says. Every cell costs three messages (start,
 * end, cell); with dynamic hand-out a request and an order more, and idle ranks ask again as mail_ask_again_ns() says. */
#ifndef QSWEEP_LAUNCH_SIMULATION_H
#define QSWEEP_LAUNCH_SIMULATION_H

#include "sweep/schedule.h"

static const double SIMULATION_LOOK_S = 0.02;

struct simulation_input {
    const struct schedule_input *schedule; /* plan, ranks, costs that the scheduler knows                       */
    const double                *seconds;  /* [plan->n] what a cell really takes at speed 1                     */
    const double                *speed;    /* [n_ranks]                                                         */
    double                       launch_s; /* end of a worker to the exec of the next                           */
    double                       message_s; /* way between two ranks                                            */
    double                       event_s;  /* rank 0's work for one event                                       */
};

struct simulation_result {
    double makespan_s;
    double busy_s;             /* of all ranks: workers alive                                      */
    double idle_share;         /* 1 − busy / (ranks · makespan)                                    */
    size_t cells, messages, requests, unanswered; /* unanswered: requests told to wait             */
    double collector_busy_s;   /* rank 0 at its mail                                               */
    double peak_per_s;         /* most messages of one second                                      */
    double wait_mean_s, wait_max_s; /* from a rank's request to its order (dynamic)                */
    double decide_s;           /* real time that the scheduler's own code took here                */
};

status_t simulate_static(const struct simulation_input *in, struct simulation_result *out);
status_t simulate_dynamic(const struct simulation_input *in, struct simulation_result *out);

#endif
