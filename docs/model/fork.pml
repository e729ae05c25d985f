/* fork.pml -- replicad: forced records.  Without a majority an operator may force a member to become primary.
 * That opens a history of its own (a *named fork*: an epoch number and a random tag).  When members of
 * different histories meet, nothing is overwritten unless one history is a part of the other.
 *
 * Three members with a disk each; contact between any two may fail for any time, so each may be forced while
 * it is alone.  A history is the sequence of its forks, kept as a set (tags are never used twice, a forced record
 * is built on the record the member had).  Each fork answers one write.
 *
 * Checked: an answered write is only ever removed from a member after `resolve --keep` of another side was asked
 *  for *with that member's history as the one to give up*; it is saved aside then.  Else it stays on it.
 * Mutations that must fail: M_NOTAG (forks are told apart by their epoch number alone), M_HIGHER (the higher
 *  epoch number wins when two meet), M_LONGER (the history with more forks wins).  -DREACH: not vacuous.
 */
#define NF 3            /* forced records in all */
#define BIT(x) (1 << (x))
byte forks[3];                     /* tags of the forced records that this member's history has */
byte num[3] = 1;                   /* epoch number */
byte data[3];                      /* writes in its image: one per fork */
bool split[3];                     /* state SPLIT: serves nobody, follows nobody */
byte nf;                           /* forced so far: also the next tag */
byte lost[3];                      /* ghost: given up by the operator, saved aside on this member */
byte had[3];                       /* ghost: answered writes that this member has ever had */

#define PARTOF(a,b) ((forks[a] & ~forks[b]) == 0)
#if defined(M_NOTAG)
#define FOLLOWS(x,y) (num[x] <= num[y])
#elif defined(M_HIGHER)
#define FOLLOWS(x,y) (num[x] < num[y])
#elif defined(M_LONGER)
#define FOLLOWS(x,y) ((forks[x] != forks[y]) && (forks[x] & (forks[x]-1)) == 0 && (forks[y] & (forks[y]-1)) != 0)
#else
#define FOLLOWS(x,y) PARTOF(x,y)
#endif
inline check() {
  assert((had[0] & ~data[0] & ~lost[0]) == 0); assert((had[1] & ~data[1] & ~lost[1]) == 0);
  assert((had[2] & ~data[2] & ~lost[2]) == 0);
#ifdef REACH  /* split, resolved, and all are on one history with a write of two forks */
  assert(!(forks[0] == forks[1] && forks[1] == forks[2] && (lost[0] | lost[1] | lost[2]) && nf == NF
           && !split[0] && !split[1] && !split[2] && num[0] == 3));
#endif
}
#define MEET(x,y) \
  :: d_step { x != y && !(split[x] || split[y]) && FOLLOWS(x,y) -> \
       forks[x] = forks[y]; num[x] = num[y]; data[x] = data[y]; had[x] = had[x] | data[x]; check() } \
  :: d_step { x != y && !FOLLOWS(x,y) && !FOLLOWS(y,x) && !(split[x] && split[y]) -> \
       split[x] = true; split[y] = true } \
  :: d_step { x != y && split[x] && !PARTOF(x,y) -> /* resolve --keep y, asked for at x: saved aside, rewound */ \
       lost[x] = lost[x] | (data[x] & ~data[y]); forks[x] = forks[y]; num[x] = num[y]; data[x] = data[y]; \
       had[x] = had[x] | data[x]; split[x] = false; split[y] = false; check() }
active [3] proctype Member() {
  byte m = _pid;
  do
  :: d_step { nf < NF && !split[m] ->                       /* failover --force, this member alone */
       forks[m] = forks[m] | BIT(nf); data[m] = data[m] | BIT(nf); had[m] = had[m] | BIT(nf); nf++; num[m]++; check() }
  MEET(m,0) MEET(m,1) MEET(m,2)
  od
}
