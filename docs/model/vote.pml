/* vote.pml -- replicad: the register under changing rules: an even number of voters with a tie-break,
 * members added and removed.  The proposer and the voters of core/vote.
 *
 * What is modelled
 *  - CASPaxos on hosts 0..NH-1.  A ballot stands for one proposer's one attempt: voters promise it and say
 *    what they accepted; with enough promises it builds on the newest accepted record it heard of (its base,
 *    also heard from voters that did not promise) and asks voters to accept that.  Messages live in a history
 *    that never shrinks, ballots may be overtaken at any point: loss, delay, duplication, reordering and dead
 *    proposers are covered.  What voters promised and accepted is durable (failover.pml removes that).
 *  - A record names its voters and its primary.  With an even number of voters the recorded primary's vote
 *    counts twice.  A record with another rule than its base (other voters, or another primary while their
 *    number is even) also names the rule of its base ("before"), and needs quorums under both.
 *  - A proposer builds only on a record that it knows was chosen; such a base needs promises under its own
 *    rule alone.  Any other base it completes first: the same record, both rules, its own ballot.
 *
 * Checked: the chosen records form one chain (each is an ancestor of every one chosen at a higher ballot).
 *  -DTWO, with two voters and no changes of members: nothing is chosen without the vote of the primary that
 *  was recorded before, so the other side alone never becomes primary.
 *
 * Mutations that must fail: M_NOTIE (half of an even number is a quorum, whoever it is); M_NEWONLY, M_OLDONLY
 *  (a record that changes the rule asks under one of the two); M_ACCNEW (promises under the old rule,
 *  acceptance under the new one); M_ACCOLD (acceptance under the old one until it is chosen); M_BUILDEARLY
 *  (builds on a record that it does not know as chosen); M_COMPLETENEW (the completion asks under the new rule
 *  only); M_LOWBASE (a proposer ignores accepted records that are not its own base's successors: keeps the
 *  first it heard of).  -DREACH* show that the runs are not vacuous.
 *  -DPRENEW asks for promises under the new rule too: it verifies as well, so that is not needed.
 */
#ifndef NH
#define NH 3            /* hosts */
#endif
#ifndef NB
#define NB 4            /* ballots; 1 is the first record */
#endif
#ifndef V0
#define V0 3            /* voters of the first record, as bits; host 0 is its primary */
#endif
#ifndef CHANGE
#define CHANGE 1        /* members are added and removed */
#endif
#define BIT(x)  (1 << (x))
#define HAS(s,x) (((s) >> (x)) & 1)
hidden byte ones[16];          /* constant: how many bits are set */
#define PC(s)   ones[s]
#define EVEN(s) (1 - (PC(s) & 1))
/* s: who answered, v: voters, t: whose vote counts twice if they are even in number */
#ifdef M_NOTIE
#define QUO(s,v,t) (v != 0 && 2 * PC((s) & (v)) >= PC(v))
#else
#define QUO(s,v,t) (2 * (PC((s) & (v)) + EVEN(v) * HAS((s) & (v), t)) > PC(v) + EVEN(v))
#endif

byte prom[4], abal[4];                    /* voters: durable */
byte pset[NB+1], base[NB+1];              /* promises that reached the proposer; newest accepted record it heard of */
bool sent[NB+1];                          /* the record of this ballot: */
byte vot[NB+1], pri[NB+1];                /*   its rule */
byte ovot[NB+1], opri[NB+1];              /*   the rule before; ovot 0 = the same */
byte acc[NB+1];                           /* who accepted it */
byte anc[NB+1];                           /* ghost: the ballots it is built on, itself included */
byte bpri[NB+1];                          /* ghost: the primary before */
byte i_, j_;

#define JOINT(b)  (ovot[b] != 0)
#define NEWQ(s,b) QUO(s, vot[b], pri[b])
#define OLDQ(s,b) (!JOINT(b) || QUO(s, ovot[b], opri[b]))
/* acceptance that makes a record chosen */
#if defined(M_NEWONLY) || defined(M_ACCNEW)
#define ACCQ(s,b) NEWQ(s,b)
#elif defined(M_OLDONLY) || defined(M_ACCOLD)
#define ACCQ(s,b) ((JOINT(b) && OLDQ(s,b)) || (!JOINT(b) && NEWQ(s,b)))
#else
#define ACCQ(s,b) (NEWQ(s,b) && OLDQ(s,b))
#endif
#define CHOSEN(b) (sent[b] && ACCQ(acc[b], b))
/* promises that completing record a needs */
#if defined(M_COMPLETENEW)
#define COMPLETEQ(s,a) NEWQ(s,a)
#elif defined(M_OLDONLY)
#define COMPLETEQ(s,a) ((JOINT(a) && OLDQ(s,a)) || (!JOINT(a) && NEWQ(s,a)))
#else
#define COMPLETEQ(s,a) (NEWQ(s,a) && OLDQ(s,a))
#endif
/* promises that building a record of rule (v,p) on record a needs */
#if defined(M_NEWONLY)
#define BUILDQ(s,a,v,p) QUO(s,v,p)
#elif defined(PRENEW)
#define BUILDQ(s,a,v,p) (NEWQ(s,a) && QUO(s,v,p))
#elif defined(M_BUILDEARLY)
#define BUILDQ(s,a,v,p) (NEWQ(s,a) && OLDQ(s,a))
#else
#define BUILDQ(s,a,v,p) NEWQ(s,a)
#endif
#ifdef M_BUILDEARLY
#define KNOWN(a) true
#else
#define KNOWN(a) CHOSEN(a)          /* the proposer itself did it, a voter was told, or a quorum says so */
#endif
#define OTHERRULE(a,v,p) ((v) != vot[a] || (EVEN(v) && (p) != pri[a]))

inline check() {
  i_ = 1;
  do
  :: i_ < NB ->
     if
     :: CHOSEN(i_) ->
        j_ = i_ + 1;
        do
        :: j_ <= NB -> if :: CHOSEN(j_) -> assert(HAS(anc[j_], i_)) :: else fi; j_++
        :: else -> break
        od
     :: else fi;
     i_++
  :: else -> break
  od;
#ifdef TWO
  i_ = 2;
  do
  :: i_ <= NB -> if :: CHOSEN(i_) -> assert(HAS(acc[i_], bpri[i_])) :: else fi; i_++
  :: else -> break
  od;
#endif
#ifdef REACHTWO    /* the tie-break moved from 0 to 1, and host 1 alone wrote the next record */
  assert(!(CHOSEN(NB) && !JOINT(NB) && pri[NB] == 1 && acc[NB] == 2 && PC(vot[NB]) == 2));
#endif
#ifdef REACHADD    /* 2 -> 3 voters, and the two others go on without the old primary */
  assert(!(CHOSEN(NB) && !JOINT(NB) && vot[NB] == 7 && acc[NB] == 6));
#endif
#ifdef REACHREM    /* 3 -> 2 voters, and the primary goes on alone */
  assert(!(CHOSEN(NB) && !JOINT(NB) && PC(vot[NB]) == 2 && vot[1] == 7 && PC(acc[NB]) == 1));
#endif
#ifdef REACHFOUR   /* four voters, the primary is lost, the three others move the tie-break and go on */
  assert(!(CHOSEN(NB) && !JOINT(NB) && vot[NB] == 15 && pri[NB] != 0 && !HAS(acc[NB], 0) && !HAS(acc[NB-1], 0)));
#endif
  i_ = 0; j_ = 0
}
inline hear(v, b) {
#ifdef M_LOWBASE
  if :: base[b] == 0 -> base[b] = abal[v] :: else fi
#else
  if :: abal[v] > base[b] -> base[b] = abal[v] :: else fi
#endif
}
inline promise(v, b) { prom[v] = b; pset[b] = pset[b] | BIT(v); hear(v, b) }
inline accept(v, b) { prom[v] = b; abal[v] = b; acc[b] = acc[b] | BIT(v); check() }
inline send(b) {                          /* i_: its base */
  sent[b] = true; anc[b] = anc[i_] | BIT(b);
  pset[b] = 0; base[b] = 0; i_ = 0        /* reduction: no longer needed */
}
inline complete(b) {
  i_ = base[b];
  vot[b] = vot[i_]; pri[b] = pri[i_]; bpri[b] = bpri[i_];
#ifndef M_COMPLETENEW
  ovot[b] = ovot[i_]; opri[b] = opri[i_];
#endif
  send(b)
}
inline build(b, v, p) {
  i_ = base[b];
  vot[b] = v; pri[b] = p; bpri[b] = pri[i_];
  if :: OTHERRULE(i_, v, p) -> ovot[b] = vot[i_]; opri[b] = pri[i_] :: else fi;
  send(b)
}
#define OPEN(b)    (b <= NB && !sent[b] && base[b] != 0)
#define CAN(b,v,p) (OPEN(b) && KNOWN(base[b]) && BUILDQ(pset[b], base[b], v, p))
#define VB(v,b) \
  :: d_step { v < NH && b <= NB && !sent[b] && prom[v] < b -> promise(v, b) } \
  :: d_step { v < NH && b <= NB && !sent[b] && prom[v] >= b && abal[v] < b && abal[v] > base[b] -> hear(v, b) } \
  :: d_step { v < NH && b <= NB && sent[b] && prom[v] <= b && abal[v] != b -> accept(v, b) }
#define PROMOTE(b,h) \
  :: d_step { h < NH && CAN(b, vot[base[b]], h) && HAS(vot[base[b]], h) && pri[base[b]] != h -> \
       build(b, vot[base[b]], h) }
#define ADD(b,h) \
  :: d_step { CHANGE && h < NH && CAN(b, vot[base[b]] | BIT(h), pri[base[b]]) && !HAS(vot[base[b]], h) -> \
       build(b, vot[base[b]] | BIT(h), pri[base[b]]) }
#define REM(b,h) \
  :: d_step { CHANGE && CAN(b, vot[base[b]] & ~BIT(h), pri[base[b]]) && HAS(vot[base[b]], h) \
              && pri[base[b]] != h -> build(b, vot[base[b]] & ~BIT(h), pri[base[b]]) }
#define BALLOT(b) VB(0,b) VB(1,b) VB(2,b) VB(3,b) \
  :: d_step { OPEN(b) && COMPLETEQ(pset[b], base[b]) -> complete(b) } \
  :: d_step { CAN(b, vot[base[b]], pri[base[b]]) -> build(b, vot[base[b]], pri[base[b]]) } \
  PROMOTE(b,0) PROMOTE(b,1) PROMOTE(b,2) PROMOTE(b,3) ADD(b,0) ADD(b,1) ADD(b,2) ADD(b,3) \
  REM(b,0) REM(b,1) REM(b,2) REM(b,3)

init {
  d_step {
    do
    :: i_ < 16 -> ones[i_] = (i_ & 1) + ((i_ >> 1) & 1) + ((i_ >> 2) & 1) + ((i_ >> 3) & 1); i_++
    :: else -> break
    od;
    sent[1] = true; vot[1] = V0; pri[1] = 0; acc[1] = V0; anc[1] = 2;
    i_ = 0;
    do :: i_ < NH -> if :: HAS(V0, i_) -> prom[i_] = 1; abal[i_] = 1 :: else fi; i_++ :: else -> break od;
    i_ = 0
  }
  do
  BALLOT(2)
#if NB >= 3
  BALLOT(3)
#endif
#if NB >= 4
  BALLOT(4)
#endif
#if NB >= 5
  BALLOT(5)
#endif
#if NB >= 6
  BALLOT(6)
#endif
  od
}
