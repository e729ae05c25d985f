/* restart.pml -- replicad: members that come back: the restarted primary's new term, and *short* members.
 * The register {epoch, primary, in-sync set} is atomic here (failover.pml and vote.pml check it).
 *
 * What is modelled
 *  - A replica has a write in memory (received), in its log (logged) or in its log on stable storage (durable).
 *    A process crash loses the first, a power loss the first two.  The primary's image: page cache and medium;
 *    power loss keeps any part of what was not synced.  Each write hits its own block; a replica takes writes
 *    in order.  default: mode sync (WRITE answered when logged everywhere, FLUSH when durable everywhere);
 *    -DSEMI: semi-sync (received / logged).
 *  - A primary that restarts takes a new epoch with itself alone in sync, by record, before it serves; the guest
 *    then reads what its image has, also writes that were never answered.  Others are reconciled (resync by
 *    hot regions, rewind) and let in again when they have durable all that it inherited and answered.
 *  - A replica that may have lost what it acknowledged (semi-sync: any restart; sync: another boot) durably
 *    marks itself short before it answers anybody.  A short member is not promoted until the primary has
 *    confirmed it whole, except when every in-sync member is short, all are there, and it is the longest.
 *
 * Checked at every start of service without force: no answered write is missing (P4), nothing the guest read
 *  since a restart is missing (P4), nothing flushed is missing (P1); the last also after a start by the
 *  exception above, and after the power loss of the primary that claims again.  An answer by a deposed primary
 *  is in the newer primary's image.
 *
 * Mutations that must fail: M_NOSHORT (no mark), M_SHORTVOLATILE (the mark is not durable), M_SHORTLATE (it is
 *  made after the member answers others), M_CONFIRMEARLY (cleared when the member attaches), M_KEEPISR (the
 *  restarted primary keeps its in-sync set), M_GROWHOT (let in without what this primary inherited),
 *  -DSEMI M_ANYSHORT (of short members any may win), -DSEMI M_NOPRIMARY (it need not be longer than the former
 *  primary, which need not be there), -DSEMI M_UNSYNCED (a promoted member serves before its
 *  log is durable).  -DREACH* show that the runs are not vacuous.
 */
#ifndef NM
#define NM 2            /* members with a disk */
#endif
#ifndef NW
#define NW 2            /* writes */
#endif
#ifndef NP
#define NP 2            /* losses of power */
#endif
#ifndef NK
#define NK 1            /* process crashes */
#endif
#ifndef NE
#define NE 3            /* highest epoch */
#endif
#define BIT(x) (1 << (x))
#define ALLM   (BIT(NM) - 1)

byte ep = 1, prim, isr = ALLM;         /* the register */
byte nw, wep[NW];                      /* writes begun, and in which epoch */
byte acked, fl, seen;                  /* ghosts: answered; covered by an answered FLUSH; read after a start */
byte gone;                             /* ghost: lost by power at the last copies of it, before it was flushed */
byte pows, kills;
bool up[3] = true, srv[3];
byte sep[3];                           /* epoch in which it serves */
byte ackset[3];
byte mem[3], img[3], dur[3];           /* received only; logged, or the primary's image; on the medium */
byte con[3];                           /* epoch of its session; 0 none */
byte re[3], r1[3], r2[3];              /* reported in that epoch: enough for a WRITE, for a FLUSH */
bool shorts[3];                         /* durable mark */
bool shv[3];                           /* M_SHORTVOLATILE: the mark in memory */
bool lostboot[3], lostmem[3];          /* what a start of the process sees: another boot; it was running before */
byte i_;

#ifdef SEMI
#define LEVEL1(x) (mem[x] | img[x])
#define LEVEL2(x) img[x]
#define MAYLACK(x) (lostboot[x] || lostmem[x])
#else
#define LEVEL1(x) img[x]
#define LEVEL2(x) dur[x]
#define MAYLACK(x) lostboot[x]
#endif
#define ALLBEGUN (BIT(nw) - 1)
#define PRIMARY(p) (srv[p] && prim == p && sep[p] == ep)
#define SHORT(x)   (shorts[x] || shv[x])
/* writes that were begun in epoch e or before */
#define OWN(e) (((nw > 0 && wep[0] <= e) * 1) | ((nw > 1 && wep[NW-1] <= e) * 2))
#define OLD(e) (((nw > 0 && wep[0] < e) * 1) | ((nw > 1 && wep[NW-1] < e) * 2))
/* what x owes to primary p before it counts as whole: all that p inherited and all that is answered */
#ifdef M_GROWHOT
#define OWED(p,x) (acked & OWN(sep[p]) & ~dur[x])
#else
#define OWED(p,x) (((img[p] & OLD(sep[p])) | (acked & OWN(sep[p]))) & ~dur[x])
#endif
#define WHOLE(p,x) (con[x] == sep[p] && OWED(p,x) == 0 && (dur[x] & ~img[p]) == 0)

inline report(x) {
  if :: con[x] != 0 -> r1[x] = r1[x] | LEVEL1(x); r2[x] = r2[x] | LEVEL2(x) :: else fi
}
#define REPORTED1(m,x,w) (!(ackset[m] & BIT(x)) || x == m || (re[x] == sep[m] && (r1[x] & BIT(w))))
#define REPORTED2(m,x)   (!(ackset[m] & BIT(x)) || x == m || (re[x] == sep[m] && !(acked & OWN(sep[m]) & ~r2[x])))
inline answer(m, w) {
  acked = acked | BIT(w);
  assert(!srv[prim] || ((img[prim] | gone) & BIT(w)))
}
#define CANANSWER(m,w) (srv[m] && nw > w && wep[w] == sep[m] && !(acked & BIT(w)) \
                        && REPORTED1(m,0,w) && REPORTED1(m,1,w) && REPORTED1(m,2,w))
#define CANFLUSH(m) (srv[m] && (acked & OWN(sep[m]) & ~fl) && !(acked & OWN(sep[m]) & ~dur[m]) \
                     && REPORTED2(m,0) && REPORTED2(m,1) && REPORTED2(m,2))
/* replica x takes write w from primary p: live, from the ring, or as a hot region */
#define CANTAKE(p,x,w) (up[x] && x != p && x < NM && srv[p] && con[x] == sep[p] && nw > w && (img[p] & BIT(w)) \
                        && !((mem[x] | img[x]) & BIT(w)) \
                        && (w == 0 || !(img[p] & 1) || ((mem[x] | img[x]) & 1)))
inline take(x, w) {
#ifdef SEMI
  mem[x] = mem[x] | BIT(w);
#else
  img[x] = img[x] | BIT(w);
#endif
  report(x)
}
#define CANJOIN(p,x) (up[x] && x != p && x < NM && !srv[x] && prim != x && PRIMARY(p) && con[x] != ep && !lostmem[x])
inline join(p, x) {
  con[x] = ep; re[x] = ep; img[x] = (img[x] | mem[x]) & img[p]; mem[x] = 0;   /* its own tail is rewound */
  r1[x] = 0; r2[x] = 0; r1[x] = img[x]; r2[x] = LEVEL2(x) & img[p];
#ifdef M_CONFIRMEARLY
  shorts[x] = false;
#endif
  ackset[p] = ackset[p] | BIT(x)
}
inline serve(m) {
  srv[m] = true; sep[m] = ep; ackset[m] = BIT(m); con[m] = 0; img[m] = img[m] | mem[m]; mem[m] = 0;
  lostmem[m] = false; lostboot[m] = false; seen = seen | img[m]
}
#ifdef M_UNSYNCED
#define SYNC_LOG(m) skip
#else
#define SYNC_LOG(m) img[m] = img[m] | mem[m]; mem[m] = 0; dur[m] = img[m]
#endif
#ifdef M_NOPRIMARY
#define THERE(x) (!(isr & BIT(x)) || x == prim || (up[x] && !srv[x] && SHORT(x)))
#define COUNTS(x) (((isr >> x) & 1) && x != prim)
#else
#define THERE(x) (!(isr & BIT(x)) || (up[x] && !srv[x] && (SHORT(x) || x == prim)))
#define COUNTS(x) ((isr >> x) & 1)
#endif
#ifdef M_ANYSHORT
#define LONGEST(m) true
#else
#define LONGEST(m) ((((img[0] * COUNTS(0)) | (img[1] * COUNTS(1)) | (img[2] * COUNTS(2))) & ~img[m]) == 0)
#endif
inline stop(m) {
  up[m] = false; srv[m] = false; sep[m] = 0; ackset[m] = 0; con[m] = 0; mem[m] = 0; shv[m] = false; lostmem[m] = true
}
#define TO(m,x) \
  :: d_step { CANTAKE(m,x,0) -> take(x,0) } \
  :: d_step { NW > 1 && CANTAKE(m,x,NW-1) -> take(x,NW-1) } \
  :: d_step { CANJOIN(m,x) -> join(m,x) } \
  :: d_step { PRIMARY(m) && x != m && (isr & BIT(x)) -> \
       isr = isr & ~BIT(x); ackset[m] = ackset[m] & ~BIT(x); if :: con[x] == ep -> con[x] = 0 :: else fi } \
  :: d_step { PRIMARY(m) && x != m && x < NM && up[x] && !lostmem[x] && (!(isr & BIT(x)) || SHORT(x)) && WHOLE(m,x) -> \
       isr = isr | BIT(x); shorts[x] = false; shv[x] = false }     /* confirmed whole, or let in */

active [NM] proctype Member() {
  byte m = _pid;
  (ackset[0] != 0 || ep > 1 || pows + kills > 0);
  do
  /* ---- data path ---- */
  :: d_step { srv[m] && nw < NW -> wep[nw] = sep[m]; img[m] = img[m] | BIT(nw); nw++ }
#ifdef SEMI
  :: d_step { up[m] && mem[m] -> img[m] = img[m] | mem[m]; mem[m] = 0; report(m) }
#endif
  :: d_step { up[m] && dur[m] != img[m] -> dur[m] = img[m]; report(m) }
  :: d_step { CANANSWER(m,0) -> answer(m,0) }
  :: d_step { NW > 1 && CANANSWER(m,NW-1) -> answer(m,NW-1) }
  :: d_step { CANFLUSH(m) -> fl = fl | (acked & OWN(sep[m])) }
  TO(m,0)
  TO(m,1)
#if NM == 3
  TO(m,2)
#endif
  /* ---- roles ---- */
  :: d_step { up[m] && !lostmem[m] && m != prim && !srv[m] && (isr & BIT(m)) && !SHORT(m) && ep < NE ->
       SYNC_LOG(m); ep++; prim = m; isr = BIT(m); serve(m);
       assert((acked & ~img[m] & ~gone) == 0); assert((seen & ~img[m] & ~gone) == 0);
#ifdef REACH       /* a failover after the restart of a member that had been short, everything answered */
       assert(!(pows > 0 && kills > 0 && acked == BIT(NW) - 1 && fl != 0 && ep == NE));
#endif
     }
  :: d_step { up[m] && !lostmem[m] && !srv[m] && (isr & BIT(m)) && SHORT(m) && m != prim && ep < NE &&
              THERE(0) && THERE(1) && THERE(2) && LONGEST(m) ->
       SYNC_LOG(m); ep++; prim = m; isr = BIT(m);
       assert((fl & ~img[m]) == 0);
#ifdef REACHSHORT  /* the exception is taken */
       assert(!(fl != 0));
#endif
       gone = gone | (ALLBEGUN & ~img[m]); shorts[m] = false; shv[m] = false; serve(m) }
  :: d_step { up[m] && m == prim && !srv[m] && ep < NE ->                         /* claims again */
       if :: lostboot[m] -> assert((fl & ~img[m]) == 0); gone = gone | (ALLBEGUN & ~img[m]) :: else fi;
       assert((acked & ~img[m] & ~gone) == 0); assert((seen & ~img[m] & ~gone) == 0);
       ep++;
#ifdef M_KEEPISR
       i_ = isr; isr = isr | BIT(m);
#else
       isr = BIT(m);
#endif
       shorts[m] = false; shv[m] = false;
       serve(m);
#ifdef M_KEEPISR
       ackset[m] = i_; i_ = 0;
#endif
     }
  :: d_step { srv[m] && sep[m] < ep -> srv[m] = false; sep[m] = 0; ackset[m] = 0 }   /* learns it is deposed */
  /* ---- faults ---- */
  :: d_step { con[m] != 0 -> con[m] = 0 }
  :: d_step { up[m] && kills < NK -> kills++; stop(m) }
  :: atomic { up[m] && pows < NP -> pows++;
       if :: img[m] = dur[m] :: skip
          :: srv[m] -> img[m] = dur[m] | (img[m] & 2) fi;      /* an image keeps any part */
       d_step { dur[m] = img[m]; lostboot[m] = true; stop(m) } }
  /* ---- start of the process; the recorded primary claims instead ---- */
  :: d_step { !up[m] -> up[m] = true;
#if defined(M_NOSHORT)
       lostmem[m] = false; lostboot[m] = false
#elif defined(M_SHORTVOLATILE)
       if :: m != prim -> shv[m] = MAYLACK(m) || shv[m]; lostmem[m] = false; lostboot[m] = false :: else fi
#elif defined(M_SHORTLATE)
       if :: m != prim -> lostmem[m] = false :: else fi        /* answers others from here on */
#else
       if :: m != prim -> shorts[m] = shorts[m] || MAYLACK(m); lostmem[m] = false; lostboot[m] = false :: else fi
#endif
     }
#ifdef M_SHORTLATE
  :: d_step { up[m] && m != prim && lostboot[m] -> shorts[m] = true; lostboot[m] = false }
#endif
  :: d_step { up[m] && lostmem[m] && m != prim -> up[m] = false }   /* deposed while down: starts as a replica */
  od
}
init { d_step { srv[0] = true; sep[0] = 1; con[1] = 1; re[1] = 1;
  if :: NM == 3 -> con[2] = 1; re[2] = 1 :: else fi;
  ackset[0] = ALLM } }
